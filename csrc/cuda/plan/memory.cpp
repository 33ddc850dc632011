// Where everything lies that the planner's records read and write.
#include "cuda/plan/planner.h"

#include <cstdlib>
#include <stdexcept>

#include "cuda/plan/cyclic_memory.h"

namespace pcf::cuda {

bool Planner::near(int position, const Read& read) const {
  const int level = timeline_.entries[position].level,
            written = timeline_.entries[timeline_.position(read.value)].level;
  const bool is_last = read.age == 0 || (read.age == 1 && level < written);
  return is_last && distance(position, read) <= kNear;
}

void Planner::uses_ring(const Read& read) {
  int& oldest = values_[read.value].oldest;
  oldest = std::max(oldest, layout_.by_rows ? -read.dy : read.age);
}

void Planner::writes(int value, int record) {
  ValueMemory& v = values_[value];
  if (v.first_written < 0) v.first_written = record;
  v.last_written = record;
}

uint32_t Planner::slot(SweepDraft& sweep, const Read& read) {
  const int length = values_[read.value].oldest + 1;
  const Ring& ring = rings_.at(length);
  Slot slot{ring.at, ring.bytes, length, read.age};
  if (layout_.by_rows) slot.age = 0, slot.dy = read.dy, slot.dx = read.dx;
  slot.common = in_cluster() && timeline_.is_sums(read.value);
  const std::tuple key(length, slot.age, slot.dy, slot.dx, slot.common);
  const auto [found, is_new] = sweep.slots.try_emplace(key, size_of(sweep.slot_table));
  if (is_new) sweep.slot_table.push_back(slot);
  return found->second;
}

uint32_t Planner::edge(SweepDraft& sweep, const Read& read, int lead) {
  if (read.dy == 0 && read.dx == 0) lead = 0;
  const auto [found, is_new] = sweep.edges.try_emplace({lead, read.dy, read.dx}, size_of(sweep.edge_table));
  if (is_new) {
    constexpr int kMost = INT16_MAX;
    if (std::max({std::abs(lead), std::abs(read.dy), std::abs(read.dx)}) > kMost)
      throw std::invalid_argument("the program reads too far away");
    const auto narrow = [](int n) { return static_cast<int16_t>(n); };
    sweep.edge_table.push_back({narrow(lead), narrow(read.dy), narrow(read.dx), 0});
  }
  return found->second;
}

void Planner::place_in_rings() {
  for (size_t v = 0; v < values_.size(); v++) {
    ValueMemory& value = values_[v];
    if (value.first_written < 0 && (value.in_ring() || !value.shared_reads.empty()))
      throw std::invalid_argument("the program reads logits, or a value that nothing computes");
    if (!value.in_ring()) continue;
    Ring& ring = rings_[value.oldest + 1];
    value.ring = ring.bytes;
    ring.bytes += int64_t{fragments(static_cast<int>(v))} * column_;
    if (ring.bytes > INT32_MAX) throw std::invalid_argument("the values of a column step exceed 2 GB");
  }
  for (auto& [length, ring] : rings_) {
    ring.at = layout_.workspace_bytes;
    layout_.workspace_bytes += ring.bytes * length * (layout_.by_rows ? layout_.width : 1);
  }
}

void Planner::place_in_shared(const SweepDraft& sweep) {
  const int records = sweep.end - sweep.first;
  CyclicMemory memory(records);
  std::vector<std::pair<int, int64_t*>> placed;
  const auto add = [&](int64_t bytes, int first, int last, int64_t& at) {
    placed.push_back({memory.add(bytes, first, last), &at});
  };
  for (auto* list : {&stagings_, &logits_})
    for (Demand& d : *list)
      if (sweep.has(d.record)) add(d.bytes, d.first, d.last, d.at);
  for (size_t v = 0; v < values_.size(); v++) {
    ValueMemory& value = values_[v];
    if (value.shared_reads.empty() || !sweep.has(value.first_written)) continue;
    // What another block sends next must not come before what it has sent last: it waits for nothing but a barrier.
    int last = value.last_written + (in_cluster() ? 2 : 1);
    for (const auto& [record, age] : value.shared_reads) last = std::max(last, record + 1 + age * records);
    add(int64_t{fragments(static_cast<int>(v))} * column_, value.first_written + 1, last, value.shared);
  }
  memory.place();
  for (const auto& [buffer, at] : placed) *at = kBarrierBytes + memory.at(buffer);
  data_bytes_ = std::max(data_bytes_, kBarrierBytes + memory.bytes());
}

uint32_t Planner::shared_of(int value) const {
  return values_[value].shared_reads.empty() ? kNowhere : static_cast<uint32_t>(values_[value].shared);
}

uint32_t Planner::ring_of(int value) const {
  return values_[value].in_ring() ? static_cast<uint32_t>(values_[value].ring) : kNowhere;
}

Place Planner::place(SweepDraft& sweep, const Chunk& chunk, bool in_shared, int lead) {
  const Read& read = chunk.read;
  const int depth = this->depth(read.value);
  Place p;
  p.at = (in_shared ? shared_of(read.value) : ring_of(read.value)) +
         static_cast<uint32_t>(chunk.first / depth * column_ + chunk.first % depth * kSiteBytes / depth);
  p.shift = sweep.at_once > 1 ? static_cast<int>(rings_.at(values_[read.value].oldest + 1).bytes)
                              : -read.dy % layout_.rows * layout_.images;
  p.edge = edge(sweep, read, lead);
  p.slot = in_shared ? kInShared : slot(sweep, read);
  return p;
}

void Planner::resolve() {
  for (Draft& d : drafts_) {
    if (d.staging < 0) continue;
    d.copies.staged = staged_at(d.staging);
    for (Part& part : d.parts) part.product.staged = d.copies.staged + part.first_copied * column_;
  }
  for (const Reference& r : references_) {
    const uint32_t staged = drafts_[r.record].copies.staged + static_cast<uint32_t>(r.staged * column_);
    places_.push_back(r.staged >= 0 ? Place{staged} : place(sweep_of(r.record), {r.read, 0, 0}, r.in_shared, r.lead));
  }
  for (const auto& [step, reference] : step_places_) steps_[step].place = places_[reference];
  const auto place_own = [&](uint32_t& at) {
    if (at != kNowhere) at = places_[at].at;
  };
  for (Result& r : results_) {
    if (r.ending == Ending::sum) place_own(r.sum.added);
    if (r.ending == Ending::lstm) place_own(r.lstm.factor);
    if (r.ending != Ending::activated) continue;
    place_own(r.activated.from), place_own(r.activated.factor), place_own(r.activated.term);
  }
  for (size_t k = 0; k < drafts_.size(); k++) {
    Draft& d = drafts_[k];
    SweepDraft& sweep = sweep_of(static_cast<int>(k));
    const auto logits = logits_of_.find(static_cast<int>(k));
    d.draw.logits = logits == logits_of_.end() ? 0 : static_cast<uint32_t>(logits_[logits->second].at);
    d.copies.places = size_of(places_);
    place_copies(sweep, d);
    place_exchange(sweep, d);
    sweep.value_bytes += int64_t{d.copies.count} * column_;
    for (Part& part : d.parts) {
      if (part.biases >= 0 && !thrift_.near_biases) d.copies.bias = staged_at(part.biases);
      resolve_late(sweep, part);
      const Record::Product& product = part.product;
      for (uint32_t n = product.results; n < product.results + product.n_results; n++)
        resolve_result(static_cast<int>(n), d, part);
    }
  }
  for (const auto& [result, value, to] : also_written_) to(results_[result]) = target(value);
  for (size_t k = 0; k < inputs_.size(); k++) inputs_[k].to = target(input_values_[k]);
}

void Planner::place_copies(SweepDraft& sweep, Draft& d) {
  const auto is_whole = [](const Multiplied& m) { return m.side_by_side(); };
  d.copies.chunked = !std::all_of(d.copied.begin(), d.copied.end(), is_whole);
  const Place nowhere{0, 0, edge(sweep, {0, program_.height, 0, 0}, 0), 0};  // zeros
  if (d.copied.empty()) places_.push_back(nowhere);                          // warps read one, whether they copy or not
  for (const Multiplied& m : d.copied)
    for (size_t c = 0; c < (d.copies.chunked ? kChunks : 1); c++)
      places_.push_back(c < m.chunks.size() ? place(sweep, m.chunks[c], false, m.lead) : nowhere);
}

void Planner::resolve_late(SweepDraft& sweep, Part& part) {
  Record::Product& product = part.product;
  std::vector<Place> late;
  for (const Multiplied& m : part.late)
    late.push_back(m.staged < 0
                       ? place(sweep, m.chunks[0], true, m.lead)
                       : Place{product.staged + static_cast<uint32_t>((m.staged - part.first_copied) * column_)});
  const size_t in_batch = kBatch / product.members;
  if (layout_.tiles == 1) {
    if (late.empty()) return;                              // a list is looked up, but not read
    std::vector<std::tuple<uint32_t, int, uint32_t>> key;  // of parts that read the same places, such as staged ones
    for (const Place& p : late) key.push_back({p.at, p.shift, p.edge});
    const auto [found, is_new] = sweep.late_lists.try_emplace({product.members, key}, size_of(sweep.late));
    product.late = found->second;
    if (!is_new) return;
    for (size_t f = 0; f < late.size(); f += in_batch)
      std::copy_n(late.begin() + f, in_batch, sweep.late.emplace_back().begin());
    return;
  }
  // How many go on where those before the barrier ended, and whether the others follow each other.
  size_t staged = 0;
  const int first = part.first_copied + static_cast<int>(part.early.size());
  while (staged < late.size() && part.late[staged].staged == first + static_cast<int>(staged)) staged++;
  bool in_row = staged % in_batch == 0;
  for (size_t k = staged; k < late.size(); k++)
    in_row &=
        late[k].edge == kEverySite && !part.late[k].filling && late[k].at == late[staged].at + (k - staged) * column_;
  product.late_staged = static_cast<int>(staged / in_batch);
  product.at_places = !in_row;
  if (in_row) {
    product.late = staged < late.size() ? late[staged].at : 0;
  } else {
    product.late = size_of(places_);
    places_.insert(places_.end(), late.begin() + product.late_staged * in_batch, late.end());
  }
}

void Planner::place_exchange(SweepDraft& sweep, Draft& d) {
  Record::Exchange& exchange = d.exchange;
  exchange.places = size_of(places_);
  for (const int value : d.written_back)
    for (int f = 0; f < fragments(value); f++) {
      const Read read{value, 0, 0, 0};
      const uint32_t shared = shared_of(value) + f * column_, ring = ring_of(value) + f * column_;
      places_.push_back({shared, static_cast<int>(ring), kEverySite, slot(sweep, read)});
    }
  exchange.count = static_cast<int>(size_of(places_) - exchange.places);
  if (exchange.count == 0) places_.push_back({0, 0, kEverySite, 0});  // warps look one up, all the same
}

Target Planner::target(int value) {
  const uint32_t ring = is_sent(value) ? kNowhere : ring_of(value);
  if (ring == kNowhere) return {shared_of(value), ring, 0};
  return {shared_of(value), ring, slot(sweep_of(values_[value].first_written), {value, 0, 0, 0})};
}

void Planner::resolve_result(int number, const Draft& d, const Part& part) {
  Result& r = results_[number];
  const auto going_on = going_on_.find(number);
  if (going_on != going_on_.end())
    r.bias += places_[going_on->second].at;
  else if (!thrift_.near_biases)
    r.bias += d.copies.bias;
  else if (part.biases >= 0)
    near_biases_[number] = part.biases;
  if (r.ending == Ending::sums) r.sums.column_bytes = static_cast<uint32_t>(rings_.at(1).bytes);
  if (r.logits == kNowhere)
    r.to = target(result_values_[number]);
  else
    r.logits += d.draw.logits;
}

SweepDraft& Planner::sweep_of(int record) {
  return *std::find_if(sweeps_.begin(), sweeps_.end(), [&](const SweepDraft& s) { return s.has(record); });
}

}  // namespace pcf::cuda
