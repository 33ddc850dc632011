// What goes to the device: tables whose numbers have become offsets, and weights in the order of their use.
#include "cuda/plan/planner.h"

#include <cstring>
#include <stdexcept>
#include <string>

#include "cuda/plan/pack.h"

namespace pcf::cuda {

Plan Planner::assembled() {
  Layout& l = layout_;
  Bytes bytes;
  if (sweeps_.size() > kMostSweeps) throw std::invalid_argument("the program goes over a row too often");
  int slots = 0, edges = 0, late_batches = l.tiles == 1;
  for (SweepDraft& sweep : sweeps_) {
    if (sweep.slot_table.empty()) sweep.slot_table.push_back({0, 0, 1});  // results look one up at any rate
    if (sweep.slot_table.size() > kThreads) throw std::invalid_argument("the program reads too many column steps");
    slots = std::max(slots, static_cast<int>(sweep.slot_table.size()));
    edges = std::max(edges, static_cast<int>(sweep.edge_table.size()));
    late_batches = std::max(late_batches, static_cast<int>(sweep.late.size()));
  }
  l.zeros = static_cast<uint32_t>(data_bytes_);
  l.tables = l.zeros + kSiteBytes;
  l.view_of_slots = l.tiles * kTileSites * sizeof(Site);
  l.view_of_edges = l.view_of_slots + slots * 8;
  l.view_of_late = round_up(l.view_of_edges + edges * 8, sizeof(Site));
  // From here on, what was a number is an offset.
  const auto table = [&](const auto& items) { return l.tables + static_cast<uint32_t>(bytes.add(items)); };
  const auto in_view = [&](uint32_t& slot) { slot = l.view_of_slots + slot * 8; };
  const auto place_in_view = [&](Place& p) {
    p.edge = l.view_of_edges + p.edge * 8;
    if (p.slot != kInShared) in_view(p.slot);
  };
  const auto offset = [](uint32_t& number, uint32_t table, size_t bytes) {
    number = table + number * static_cast<uint32_t>(bytes);
  };
  for (Place& p : places_) place_in_view(p);
  for (StepPlan& step : steps_) place_in_view(step.place);
  const uint32_t places = table(places_), steps = table(steps_);
  const uint32_t biases = table(biases_);
  for (const auto& [result, first] : near_biases_) results_[result].bias += biases + first * sizeof(float);
  for (Result& r : results_) {
    in_view(r.to.slot);
    if (r.ending == Ending::lstm) in_view(r.lstm.cell.slot);
    if (r.ending == Ending::gate) in_view(r.gate.sums[0].slot), in_view(r.gate.sums[1].slot);
    if (r.ending != Ending::steps) continue;
    if (r.steps.starts != kNowhere) offset(r.steps.starts, places, sizeof(Place));
    offset(r.steps.first, steps, sizeof(StepPlan));
  }
  for (InputPlan& input : inputs_) {
    in_view(input.to.slot);
    const auto first = floats_.begin() + input.table;
    const std::vector<float> tables(first, first + input.count * input.floats);
    input.near = tables.size() <= kNearFloats ? table(tables) : kNowhere;
  }
  const uint32_t results = table(results_), inputs = table(inputs_);
  // What each block of a cluster has of its own, and where in the tables.
  std::vector<std::vector<Record>> own_records;
  for (SweepDraft& sweep : sweeps_) {
    SweepPlan& plan = l.sweeps[l.n_sweeps++];
    plan = {};
    plan.at_once = sweep.at_once, plan.columns = sweep.direction * sweep.at_once;
    plan.edges = static_cast<int>(sweep.edge_table.size()), plan.slots = static_cast<int>(sweep.slot_table.size());
    for (int rank = 0; rank < l.cluster; rank++) {
      std::vector<Record>& records = own_records.emplace_back(records_of(sweep, plan, rank));
      for (Record& r : records) {
        offset(r.copies.places, places, sizeof(Place));
        if (l.tiles == 1)
          offset(r.product.late, l.view_of_late, kLateBytes);
        else if (r.product.at_places)
          offset(r.product.late, places, sizeof(Place));
        offset(r.product.results, results, sizeof(Result)), offset(r.draw.inputs, inputs, sizeof(InputPlan));
        offset(r.exchange.places, places, sizeof(Place));
      }
    }
    l.records += sweep.end - sweep.first;
    plan.records = table(own_records.back());
    plan.weights = table(std::vector<Weights>(kWarps));
    for (uint32_t& record : plan.first_copies)
      if (record != kNowhere) offset(record, plan.records, sizeof(Record));
    plan.edge_table = table(sweep.edge_table), plan.slot_table = table(sweep.slot_table);
    std::vector<LateBatch> late(sweep.late.size());
    for (size_t k = 0; k < late.size(); k++)
      for (int f = 0; f < kBatch; f++) {
        Place p = sweep.late[k][f];
        place_in_view(p);
        late[k].words[f] = LateBatch::word(p.at, p.shift, p.edge);
      }
    plan.late_table = table(late), plan.late_batches = static_cast<int>(late.size());
  }
  set_steps();
  l.conditions = table(conditions());
  l.table_bytes = static_cast<uint32_t>(bytes.size());
  l.first_view = l.tables + l.table_bytes;
  const uint32_t view_bytes = l.view_of_late + late_batches * kLateBytes;
  l.both_views = 2 * l.first_view + view_bytes;
  const int64_t shared_bytes = l.first_view + 2 * int64_t{view_bytes};
  if (shared_bytes > limits_.shared_bytes)
    throw std::invalid_argument("a column step needs " + std::to_string(shared_bytes) +
                                " bytes of shared memory, and a block has " + std::to_string(limits_.shared_bytes));
  const std::vector<char> tables = bytes.bytes;
  for (int rank = 1; rank < l.cluster; rank++) bytes.add(tables);
  l.floats = bytes.add(floats_);
  std::vector<SweepFacts> sweep_facts;
  for (size_t k = 0; k < sweeps_.size(); k++) {
    int64_t most = 0;
    for (int rank = 0; rank < l.cluster; rank++) {
      const auto write = [&](const auto& items, uint32_t table) {
        const size_t at = rank * size_t{l.table_bytes} + table - l.tables;
        std::memcpy(bytes.bytes.data() + at, items.data(), items.size() * sizeof(items[0]));
      };
      write(own_records[k * l.cluster + rank], l.sweeps[k].records);
      const std::vector<Weights> weights = write_weights(bytes, sweeps_[k], rank);
      write(weights, l.sweeps[k].weights);
      int64_t size = 0;
      for (const Weights& w : weights) size += w.bytes;
      most = std::max(most, size);
    }
    sweep_facts.push_back({sweeps_[k].end - sweeps_[k].first, most, sweeps_[k].value_bytes});
  }
  return {math_, l, std::move(bytes.bytes), static_cast<int>(shared_bytes), weight_bytes_, sweep_facts};
}

std::vector<Record> Planner::records_of(const SweepDraft& sweep, SweepPlan& plan, int rank) const {
  std::vector<Record> records;
  const int lists = sweep.has_parts ? kWarps : 1;
  for (int warp = 0; warp < lists; warp++) add_records(records, sweep, plan, rank, warp);
  plan.list_bytes = sweep.has_parts ? static_cast<int>(records.size() / lists * sizeof(Record)) : 0;
  return records;
}

void Planner::add_records(std::vector<Record>& records, const SweepDraft& sweep, SweepPlan& plan, int rank,
                          int warp) const {
  const size_t begin = records.size();
  for (uint32_t& record : plan.first_copies) record = kNowhere;
  for (int k = sweep.first; k < sweep.end; k++) {
    const Draft& d = drafts_[k];
    const int ahead = k + thrift_.copies_ahead, later = ahead < sweep.end ? ahead : ahead - sweep.end + sweep.first;
    Record r{drafts_[later].copies, {}, d.draw, d.exchange};
    r.copies.next_step = later != ahead;
    leave_copying_to(r.copies, sweep, d, rank, warp);
    if (r.copies.next_step) plan.first_copies[later - sweep.first] = static_cast<uint32_t>(records.size() - begin);
    Part part;  // the warp's, if it has one; and else any
    for (const Part& p : d.parts) {
      r.exchange.bytes += static_cast<int>(sent_bytes(p, p.tiles - share_of(p.tiles, rank).count));
      if (&p == &d.parts[0] || has_tile(p, rank, warp)) part = p;
    }
    r.product = part.product;
    r.product.barriers = kBefore | (r.copies.warps == kWarps ? kAllCopy : 0);
    // A warp's tiles one after the other, as often in all blocks of a cluster.
    const int most = share_of(part.tiles, 0).count;
    const Share mine = share_of(part.tiles, rank);
    for (int done = 0; done == 0 || done < most; done += kWarps) {
      r.product.first_tile = mine.first + done - part.first_warp;
      r.product.warps = ((1u << std::clamp(mine.count - done, 0, kWarps)) - 1) << part.first_warp;
      if (done + kWarps >= most) r.product.barriers |= kAfter;
      if (r.product.barriers & kAfter) {
        if (k == sweep.first) r.product.after = AfterRecord::prepare_next_step;  // early, as the last ones copy for the next column step
        if (k == sweep.first + kListLate) r.product.after = AfterRecord::list_late;
      }
      records.push_back(r);
      r.product.barriers = 0, r.exchange.count = 0;
    }
  }
  records.back().product.after = AfterRecord::step;
}

bool Planner::has_tile(const Part& part, int rank, int warp) const {
  const int tile = warp - part.first_warp;
  return tile >= 0 && tile < share_of(part.tiles, rank).count;
}

void Planner::leave_copying_to(Record::Copies& copies, const SweepDraft& sweep, const Draft& d, int rank,
                               int warp) const {
  if (sweep.has_parts) {
    int before = 0, others = 0;
    for (int w = 0; w < kWarps; w++) {
      const bool is_free =
          std::none_of(d.parts.begin(), d.parts.end(), [&](const Part& part) { return has_tile(part, rank, w); });
      others += is_free, before += is_free && w < warp;
      if (w == warp) copies.warps = is_free;
    }
    if (others > 1)
      copies.first_warp = warp - before, copies.warps *= others;
    else
      copies.first_warp = 0, copies.warps = kWarps;
    return;
  }
  const Part part = d.parts.empty() ? Part{} : d.parts[0];
  const int tiles = share_of(part.tiles, rank).count;
  if (in_teams(part)) {
    copies.first_warp = part.first_warp == kWarps / 2 ? 0 : kWarps / 2, copies.warps = kWarps / 2;
  } else {
    copies.first_warp = 2 * tiles <= kWarps ? tiles : 0;
    copies.warps = kWarps - copies.first_warp;
  }
}

void Planner::set_steps() {
  int longest_lead = 0;
  for (const Instruction& i : program_.instructions) longest_lead = std::max(longest_lead, i.lead);
  for (int k = 0; k < layout_.n_sweeps; k++) {
    SweepPlan& sweep = layout_.sweeps[k];
    sweep.first_step = layout_.by_rows ? (sweep.columns > 0 ? 0 : program_.width - 1) : -longest_lead;
    const Wavefront wave{program_.width, program_.height, layout_.lag};
    sweep.steps = layout_.by_rows ? parts(program_.width, sweep.at_once) : wave.steps() + longest_lead;
  }
}

std::vector<ConditionPlan> Planner::conditions() const {
  std::vector<ConditionPlan> result;
  int64_t before = 0;
  for (const ConditionOperand& operand : program_.conditions) {
    result.push_back({operand.channels, operand.varies_over_pixels, before});
    before += operand.channels * (operand.varies_over_pixels ? int64_t{program_.height} * program_.width : 1);
  }
  return result;
}

std::vector<Weights> Planner::write_weights(Bytes& bytes, const SweepDraft& sweep, int rank) {
  std::vector<Weights> result;
  for (int warp = 0; warp < kWarps; warp++) {
    std::vector<char> stream;
    for (int k = sweep.first; k < sweep.end; k++)
      for (const Part& part : drafts_[k].parts) {
        const Share mine = share_of(part.tiles, rank);
        for (int t = warp - part.first_warp; t >= 0 && t < mine.count; t += kWarps)
          for (const auto* list : {&part.early, &part.late})
            for (const Multiplied& m : *list)
              for (const Member& member : part.members) {
                const int channel = (mine.first + t) * part.wide * kTileChannels;
                stream.resize(stream.size() + kWeightBytes);
                if (!m.filling) pack(m, member, channel, stream.data() + stream.size() - kWeightBytes);
              }
      }
    const int size = static_cast<int>(stream.size());
    weight_bytes_ += size;
    // What a warp has in flight goes on at the beginning.
    for (int k = 0; k < kBatchesAhead * kBatch * kWeightBytes; k++) stream.push_back(size ? stream[k] : char{0});
    result.push_back({bytes.add(stream), size, 0});
  }
  return result;
}

void Planner::pack(const Multiplied& m, const Member& member, int channel, char* fragment) const {
  const int in_turn = static_cast<int>(member.instructions.size()), outputs = member.instructions[0]->channels;
  const size_t taps = member.weights.size() / in_turn;
  const int in_chunk = depth_ / kChunks;
  const auto at = [&](int k, int row) {
    const size_t c = k / in_chunk;
    if (c >= m.chunks.size()) return 0.f;
    const Chunk& chunk = m.chunks[c];
    const int in = chunk.first + k % in_chunk, of_all = member.first_channel + channel + row, out = of_all / in_turn;
    const bool is_there = in < timeline_.channels(chunk.read.value) && out < outputs;
    return is_there ? member.weights[of_all % in_turn * taps + chunk.tap][int64_t{in} * outputs + out] : 0.f;
  };
  pack_weights(math_, at, fragment);
}

}  // namespace pcf::cuda
