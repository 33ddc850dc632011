// Where everything lies that the planner's records read and write.
#include <cstdlib>
#include <cstring>
#include <functional>
#include <stdexcept>

#include "cuda/plan/planner.h"

namespace pcf::cuda {
namespace {

// Whether blocks of a cluster send a value to each other. Each of them computes some of its channels, and sends them to
// the others' shared memory, where the next record multiplies them. What is read later is read from a ring, which each
// block has of its own: the next record writes there what has been sent, since nothing that another block writes to
// global memory is seen without a wait as long as a record.
bool is_sent(const Planner& p, int value) {
  return p.in_cluster() && !p.values[value].is_input && !p.timeline.is_sums(value);
}

// Values that are kept for equally long share a ring.
void place_in_rings(Planner& p) {
  for (int v = 0; v < p.timeline.values(); v++) {
    ValueMemory& value = p.values[v];
    if (value.first_written < 0 && (value.in_ring() || !value.shared_reads.empty()))
      throw std::invalid_argument("the program reads logits, or a value that nothing computes");
    if (!value.in_ring()) continue;
    if (is_sent(p, v)) p.uses_shared({v, 0, 0, 0}, value.last_written + 1);
    Ring& ring = p.rings[value.oldest + 1];
    ring.length = value.oldest + 1;
    value.ring = ring.bytes;
    ring.bytes += int64_t{p.fragments(v)} * p.column;
    if (ring.bytes > INT32_MAX) throw std::invalid_argument("the values of a column step exceed 2 GB");
  }
  for (auto& [length, ring] : p.rings) {
    ring.ring = p.layout.workspace_bytes;
    p.layout.workspace_bytes += ring.bytes * length * (p.layout.by_rows ? p.layout.width : 1);
  }
}

// Places what is needed for some windows of a cycle, again in each of its turns. What is needed in different windows
// may lie in the same place. The largest are placed first, each as low as it can be. -> the bytes of all
int64_t place_in_cycle(std::vector<Demand*>& demands, int windows) {
  const auto at_once = [&](const Demand& a, const Demand& b) {
    const auto begins_within = [&](const Demand& inner, const Demand& outer) {
      return ((inner.first - outer.first) % windows + windows) % windows <= outer.last - outer.first;
    };
    return begins_within(a, b) || begins_within(b, a);
  };
  for (Demand* d : demands) d->bytes = (d->bytes + 127) / 128 * 128;
  std::ranges::stable_sort(demands, std::greater(), &Demand::bytes);
  int64_t end = kBarrierBytes;
  for (auto d = demands.begin(); d != demands.end(); d++) {
    Demand& own = **d;
    own.at = kBarrierBytes;
    const auto is_in_the_way = [&](const Demand* other) {
      return at_once(own, *other) && own.at < other->at + other->bytes && other->at < own.at + own.bytes;
    };
    for (auto other = demands.begin(); other != d;)
      if (is_in_the_way(*other))
        own.at = (*other)->at + (*other)->bytes, other = demands.begin();
      else
        other++;
    end = std::max(end, own.at + own.bytes);
  }
  return end;
}

int64_t place_in_shared(Planner& p, SweepDraft& sweep) {
  const int records = sweep.end - sweep.first;
  std::vector<Demand*> demands;
  for (auto* list : {&sweep.staged, &sweep.logits})
    for (Demand& d : *list) demands.push_back(&d);
  for (int v = 0; v < p.timeline.values(); v++) {
    ValueMemory& value = p.values[v];
    if (value.shared_reads.empty() || !sweep.has(value.first_written)) continue;
    // What another block sends next must not come before what it has sent last: it waits for nothing but a barrier.
    int last = value.last_written + (p.in_cluster() ? 2 : 1);
    for (const auto& [record, age] : value.shared_reads) last = std::max(last, record + 1 + age * records);
    value.shared = {int64_t{p.fragments(v)} * p.column, value.first_written + 1, last};
    demands.push_back(&value.shared);
  }
  return place_in_cycle(demands, records);
}

uint32_t shared_of(const Planner& p, int value) {
  return p.values[value].shared_reads.empty() ? kNowhere : static_cast<uint32_t>(p.values[value].shared.at);
}

uint32_t in_ring_of(const Planner& p, int value) {
  return p.values[value].in_ring() ? static_cast<uint32_t>(p.values[value].ring) : kNowhere;
}

// The number of an item in a table, to which it is added if it is new.
template <class T>
uint32_t number_in(std::vector<T>& table, const T& item) {
  const auto is_it = [&](const T& other) { return std::memcmp(&other, &item, sizeof item) == 0; };
  const auto found = std::ranges::find_if(table, is_it);
  const auto number = static_cast<uint32_t>(found - table.begin());
  if (found == table.end()) table.push_back(item);
  return number;
}

const Ring& ring_of(const Planner& p, int value) { return p.rings.at(p.values[value].oldest + 1); }

// Where the ring of what is read stands, in a view.
uint32_t slot(const Planner& p, SweepDraft& sweep, const Read& read) {
  Ring slot = ring_of(p, read.value);
  if (p.layout.by_rows)
    slot.dy = read.dy, slot.dx = read.dx;
  else
    slot.age = read.age;
  slot.common = p.in_cluster() && p.timeline.is_sums(read.value);
  return p.layout.view_of_slots + number_in(sweep.slots, slot) * 8;
}

uint32_t edge(SweepDraft& sweep, const Read& read, int lead) {
  if (read.dy == 0 && read.dx == 0) return kEverySite;
  if (std::max({std::abs(lead), std::abs(read.dy), std::abs(read.dx)}) > INT16_MAX)
    throw std::invalid_argument("the program reads too far away");
  const auto narrow = [](int n) { return static_cast<int16_t>(n); };
  return number_in(sweep.edges, {narrow(lead), narrow(read.dy), narrow(read.dx), 0}) * 8;
}

// staged: where it is among what the record copies ahead, or -1.
Location place(const Planner& p, SweepDraft& sweep, const Chunk& chunk, bool in_shared, int lead, int staged,
               const Draft& d) {
  if (staged >= 0) return {static_cast<uint32_t>(d.staging->at + staged * p.column)};
  const Read& read = chunk.read;
  const int depth = p.depth_in(read.value);
  Location found;
  found.at = (in_shared ? shared_of(p, read.value) : in_ring_of(p, read.value)) +
             static_cast<uint32_t>(chunk.first / depth * p.column + chunk.first % depth * kSiteBytes / depth);
  found.shift = sweep.plan.at_once > 1 ? static_cast<int>(ring_of(p, read.value).bytes)
                                       : -read.dy % p.layout.rows * p.layout.images;
  found.edge = edge(sweep, read, lead);
  if (!in_shared) found.slot = slot(p, sweep, read);
  return found;
}

SweepDraft& sweep_of(Planner& p, int record) {
  return *std::ranges::find_if(p.sweeps, [&](const SweepDraft& s) { return s.has(record); });
}

Target target(Planner& p, const Target& written) {
  const int value = static_cast<int>(written.shared);
  const uint32_t shared = shared_of(p, value), ring = is_sent(p, value) ? kNowhere : in_ring_of(p, value);
  if (ring == kNowhere) return {shared, ring, p.layout.view_of_slots};
  return {shared, ring, slot(p, sweep_of(p, p.values[value].first_written), {value, 0, 0, 0})};
}

// The offset of the next place in its table, which is the first of all tables.
uint32_t next_place(const Planner& p) { return offset<Location>(p.layout.tables, size_of(p.places)); }

void place_copies(Planner& p, SweepDraft& sweep, Draft& d) {
  d.copies.places = next_place(p);
  d.copies.chunked = !std::ranges::all_of(d.copied, &Multiplied::side_by_side);
  const Location nowhere{0, 0, edge(sweep, {0, p.program.height, 0, 0}, 0), p.layout.view_of_slots};  // zeros
  if (d.copied.empty()) p.places.push_back(nowhere);  // warps read one, whether they copy or not
  for (const Multiplied& m : d.copied)
    for (size_t c = 0; c < (d.copies.chunked ? kChunks : 1); c++)
      p.places.push_back(c < m.chunks.size() ? place(p, sweep, m.chunks[c], false, m.lead, -1, d) : nowhere);
}

// Of values that the record before it has sent.
void place_exchange(Planner& p, SweepDraft& sweep, Draft& d, int record) {
  d.exchange.places = next_place(p);
  for (int value = 0; value < p.timeline.values(); value++) {
    if (p.values[value].last_written + 1 != record || !p.values[value].in_ring() || !is_sent(p, value)) continue;
    for (int f = 0; f < p.fragments(value); f++, d.exchange.count++) {
      const uint32_t shared = shared_of(p, value) + f * p.column, ring = in_ring_of(p, value) + f * p.column;
      p.places.push_back({shared, static_cast<int>(ring), kEverySite, slot(p, sweep, {value, 0, 0, 0})});
    }
  }
  // Warps look one up, all the same.
  if (d.exchange.count == 0) p.places.push_back({0, 0, kEverySite, p.layout.view_of_slots});
}

// With one tile of sites: a list of batches, in common for parts that read the same places, such as staged ones.
void list_late(SweepDraft& sweep, Part& part, const std::vector<Location>& late) {
  if (late.empty()) return;  // a list is looked up, but not read
  std::vector<uint32_t> words;
  for (const Location& place : late) words.push_back(LateBatch::word(place.at, place.shift, place.edge));
  const auto [found, is_new] = sweep.late_lists.try_emplace({part.in_batch(), words}, size_of(sweep.late));
  part.product.late = found->second;
  if (!is_new) return;
  for (auto next = words.begin(); next != words.end(); next += part.in_batch())
    std::copy_n(next, part.in_batch(), sweep.late.emplace_back().words);
}

// With more tiles: how many go on where those before the barrier ended, and whether the others follow each other.
void place_late(Planner& p, Part& part, const std::vector<Location>& late) {
  Record::Product& product = part.product;
  size_t staged = 0;
  const int first = part.first_copied + part.early();
  while (staged < late.size() && part.late()[staged].staged == first + static_cast<int>(staged)) staged++;
  bool in_row = staged % part.in_batch() == 0;
  for (size_t k = staged; k < late.size(); k++)
    in_row &= late[k].edge == kEverySite && !part.late()[k].filling &&
              late[k].at == late[staged].at + (k - staged) * p.column;
  product.late_staged = static_cast<int>(staged) / part.in_batch();
  product.at_places = !in_row;
  if (in_row) {
    product.late = staged < late.size() ? late[staged].at : 0;
  } else {
    product.late = next_place(p);
    p.places.insert(p.places.end(), late.begin() + product.late_staged * part.in_batch(), late.end());
  }
}

void place_record(Planner& p, SweepDraft& sweep, int record) {
  Draft& d = p.drafts[record];
  const auto place_of = [](const Demand* demand) { return demand ? static_cast<uint32_t>(demand->at) : 0; };
  d.copies.staged = place_of(d.staging), d.copies.bias = place_of(d.biases), d.draw.logits = place_of(d.logits);
  place_copies(p, sweep, d);
  place_exchange(p, sweep, d, record);
  for (Part& part : d.parts) {
    part.product.staged = d.copies.staged + part.first_copied * p.column;
    std::vector<Location> late;
    for (const Multiplied& m : part.late()) late.push_back(place(p, sweep, m.chunks[0], true, m.lead, m.staged, d));
    if (p.layout.tiles == 1)
      list_late(sweep, part, late);
    else
      place_late(p, part, late);
    for (Result& r : p.results_of(part)) {
      if (r.ending == Ending::sums) r.sums.column_bytes = static_cast<uint32_t>(p.rings.at(1).bytes);
      if (r.logits == kNowhere)
        r.to = target(p, r.to);
      else
        r.logits += d.draw.logits;
    }
  }
}

}  // namespace

void place_all(Planner& p) {
  place_in_rings(p);
  int64_t bytes = 0;
  for (SweepDraft& sweep : p.sweeps) bytes = std::max(bytes, place_in_shared(p, sweep));
  p.layout.zeros = static_cast<uint32_t>(bytes);
  p.layout.tables = p.layout.zeros + kSiteBytes;
  for (const auto& [read, record, in_shared, lead, staged] : p.references)
    p.places.push_back(place(p, sweep_of(p, record), {read, 0, 0}, in_shared, lead, staged, p.drafts[record]));
  for (SweepDraft& sweep : p.sweeps)
    for (int k = sweep.first; k < sweep.end; k++) place_record(p, sweep, k);
  for (Result& r : p.results)
    for (Target& written : also_written(r)) written = target(p, written);
  for (InputPlan& input : p.inputs) input.to = target(p, input.to);
}

}  // namespace pcf::cuda
