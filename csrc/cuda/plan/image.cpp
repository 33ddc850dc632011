// What goes to the device: tables, in which numbers have become offsets, and weights.
#include <cstring>
#include <stdexcept>
#include <string>

#include "cuda/narrow.h"
#include "cuda/plan/planner.h"
#include "wavefront.h"

namespace pcf::cuda {
namespace {

// Tables of so many floats may lie in shared memory.
constexpr size_t kNearFloats = 1024;

// Each piece begins on a line of the cache: a warp's 512 bytes then touch no line more than they must. -> where
template <class T>
int64_t append(std::vector<char>& bytes, const std::vector<T>& items) {
  const size_t at = bytes.size(), added = items.size() * sizeof(T);
  const char* const from = reinterpret_cast<const char*>(items.data());
  bytes.insert(bytes.end(), from, from + added);
  bytes.insert(bytes.end(), (128 - added % 128) % 128, 0);
  return static_cast<int64_t>(at);
}

// Says where everything lies in a view, in what refers to its edges, too. -> its bytes
uint32_t complete_views(Planner& p) {
  Layout& l = p.layout;
  int slots = 0, edges = 0, late_batches = l.tiles == 1;
  for (SweepDraft& sweep : p.sweeps) {
    if (sweep.slots.empty()) sweep.slots.push_back({0, 0, 1});  // results look one up at any rate
    if (sweep.slots.size() > kThreads) throw std::invalid_argument("the program reads too many column steps");
    slots = std::max(slots, size_of(sweep.slots));
    edges = std::max(edges, size_of(sweep.edges));
    late_batches = std::max(late_batches, size_of(sweep.late));
  }
  l.view_of_edges = l.view_of_slots + slots * 8;
  l.view_of_late = round_up(l.view_of_edges + edges * 8, sizeof(Site));
  for (Location& place : p.places) place.edge += l.view_of_edges;
  for (StepPlan& step : p.steps)
    step.place = step.reads == Operand::value ? p.places[step.place.at] : Location{.edge = l.view_of_edges};
  for (SweepDraft& sweep : p.sweeps)
    for (LateBatch& batch : sweep.late)
      for (uint32_t& word : batch.words) word += LateBatch::word(0, 0, l.view_of_edges);
  return l.view_of_late + late_batches * kLateBytes;
}

// biases, steps: where the part's biases and all steps lie.
void resolve(const Planner& p, Result& r, uint32_t biases, uint32_t steps) {
  const auto read_own = [&](uint32_t& reference) {
    if (reference != kNowhere) reference = p.places[reference].at;
  };
  if (r.bias_site)  // of sums that it goes on with
    r.bias = p.places[r.bias].at + r.first_channel / kTileChannels * p.column;
  else
    r.bias += biases;
  if (r.ending == Ending::sum) read_own(r.sum.added);
  if (r.ending == Ending::lstm) read_own(r.lstm.factor);
  if (r.ending == Ending::activated)
    read_own(r.activated.from), read_own(r.activated.factor), read_own(r.activated.term);
  if (r.ending != Ending::steps) return;
  if (r.steps.starts != kNowhere) r.steps.starts = offset<Location>(p.layout.tables, r.steps.starts);
  r.steps.first = offset<StepPlan>(steps, r.steps.first);
}

// Writes the tables that all sweeps have in common, and resolves what refers to them.
void add_tables(Planner& p, const auto& table) {
  Layout& l = p.layout;
  table(p.places);
  const uint32_t steps = table(p.steps), biases = table(p.biases);
  for (const Draft& d : p.drafts)
    for (const Part& part : d.parts)
      for (Result& r : p.results_of(part))
        resolve(p, r, part.biases < 0 ? d.copies.bias : offset<float>(biases, part.biases), steps);
  for (InputPlan& input : p.inputs) {
    const auto first = p.floats.begin() + input.table;
    const std::vector<float> floats(first, first + input.count * input.floats);
    input.near = floats.size() <= kNearFloats ? table(floats) : kNowhere;
  }
  const uint32_t results = table(p.results), inputs = table(p.inputs);
  for (Draft& d : p.drafts) {
    d.draw.inputs = offset<InputPlan>(inputs, d.draw.inputs);
    for (Part& part : d.parts) {
      part.product.results = offset<Result>(results, part.first_result), part.product.n_results = part.n_results;
      if (l.tiles == 1) part.product.late = l.view_of_late + part.product.late * kLateBytes;
    }
  }
}

// What is sent of so many tiles of a record's channels, to each of the other blocks.
int64_t sent_bytes(Planner& p, const Part& part, int tiles) {
  const int64_t channels = int64_t{tiles} * part.wide * kTileChannels, sites = p.layout.tiles * kTileSites;
  const int64_t of_value = channels * sites * kSiteBytes / p.depth, of_logits = channels * sites * 4;
  int64_t bytes = 0;
  for (Result& r : p.results_of(part)) {
    // A sum is of all members, if they are of one layer.
    const int shares = r.ending == Ending::gate ? 2 : r.ending == Ending::sum ? 1 : part.wide;
    if (r.logits != kNowhere) bytes += of_logits / shares;
    if (r.to.shared != kNowhere) bytes += of_value / shares;
    for (const Target& to : also_written(r)) bytes += to.shared == kNowhere ? 0 : of_value / shares;
  }
  return bytes;
}

bool has_tile(const Planner& p, const Part& part, int rank, int warp) {
  const int tile = warp - part.first_warp;
  return tile >= 0 && tile < p.share_of(part.tiles, rank).count;
}

void leave_copying_to(const Planner& p, Record::Copies& copies, const SweepDraft& sweep, const Draft& d, int rank,
                      int warp) {
  const Part& part = d.parts[0];
  const int tiles = p.share_of(part.tiles, rank).count;
  copies.first_warp = 0;
  if (sweep.has_parts) {
    const auto has_tile_too = [&](int w) {
      return std::ranges::any_of(d.parts, [&](const Part& part) { return has_tile(p, part, rank, w); });
    };
    int before = 0, others = 0;
    for (int w = 0; w < kWarps; w++)
      if (!has_tile_too(w)) others++, before += w < warp;
    copies.warps = others < 2 ? kWarps : has_tile_too(warp) ? 0 : others;
    if (others > 1) copies.first_warp = warp - before;
  } else if (p.in_teams(part)) {
    copies.first_warp = part.first_warp == kWarps / 2 ? 0 : kWarps / 2, copies.warps = kWarps / 2;
  } else {
    copies.first_warp = 2 * tiles <= kWarps ? tiles : 0, copies.warps = kWarps - copies.first_warp;
  }
}

// A warp's, or all warps'.
void add_records(Planner& p, std::vector<Record>& records, SweepDraft& sweep, int rank, int warp) {
  const size_t begin = records.size();
  for (uint32_t& record : sweep.plan.first_copies) record = kNowhere;
  for (int k = sweep.first; k < sweep.end; k++) {
    const Draft& d = p.drafts[k];
    const int ahead = k + p.copies_ahead, later = ahead < sweep.end ? ahead : ahead - sweep.end + sweep.first;
    Record r{p.drafts[later].copies, {}, d.draw, d.exchange};
    r.copies.next_step = later != ahead;
    leave_copying_to(p, r.copies, sweep, d, rank, warp);
    if (r.copies.next_step)
      sweep.plan.first_copies[later - sweep.first] = static_cast<uint32_t>(records.size() - begin);
    const Part* part = &d.parts[0];  // the warp's, if it has one; and else any
    for (const Part& other : d.parts) {
      r.exchange.bytes += static_cast<int>(sent_bytes(p, other, other.tiles - p.share_of(other.tiles, rank).count));
      if (has_tile(p, other, rank, warp)) part = &other;
    }
    r.product = part->product;
    r.product.barriers = kBefore | (r.copies.warps == kWarps ? kAllCopy : 0);
    // A warp's tiles one after the other, as often in all blocks of a cluster.
    const int most = p.share_of(part->tiles, 0).count;
    const auto mine = p.share_of(part->tiles, rank);
    for (int done = 0; done == 0 || done < most; done += kWarps) {
      r.product.first_tile = mine.first + done - part->first_warp;
      r.product.warps = ((1u << std::clamp(mine.count - done, 0, kWarps)) - 1) << part->first_warp;
      if (done + kWarps >= most) {
        r.product.barriers |= kAfter;
        // Early, as the last ones copy for the next column step.
        if (k == sweep.first) r.product.after = AfterRecord::prepare_next_step;
        if (k == sweep.first + kListLate) r.product.after = AfterRecord::list_late;
      }
      records.push_back(r);
      r.product.barriers = 0, r.exchange.count = 0;
    }
  }
  records.back().product.after = AfterRecord::step;
}

// A list for all warps, or one for each of them if records have parts.
std::vector<Record> records_of(Planner& p, SweepDraft& sweep, int rank) {
  std::vector<Record> records;
  for (int warp = 0; warp < (sweep.has_parts ? kWarps : 1); warp++) add_records(p, records, sweep, rank, warp);
  if (sweep.has_parts) sweep.plan.list_bytes = static_cast<int>(records.size() / kWarps * sizeof(Record));
  return records;
}

// In which column step, or column, a sweep begins, and how many it has.
void set_steps(const Planner& p, SweepPlan& plan) {
  const int width = p.program.width;
  if (p.layout.by_rows) {
    plan.first_step = plan.columns > 0 ? 0 : width - 1, plan.steps = parts(width, plan.at_once);
    return;
  }
  int longest_lead = 0;
  for (const Instruction& i : p.program.instructions) longest_lead = std::max(longest_lead, i.lead);
  plan.first_step = -longest_lead;
  plan.steps = Wavefront{width, p.program.height, p.layout.lag}.steps() + longest_lead;
}

std::vector<ConditionPlan> conditions_of(const Program& program) {
  std::vector<ConditionPlan> result;
  int64_t before = 0;
  for (const ConditionOperand& of : program.conditions) {
    result.push_back({of.channels, of.varies_over_pixels, before});
    before += elements(program, of);
  }
  return result;
}

// Which of 16 channels is row `row` of a matrix instruction. A lane's two rows, g and g + 8, are neighbouring channels.
int channel_of_row(int row) { return row % 8 * 2 + row / 8; }

// Packs at(input channel, row) into `fragment`:
//   tensor cores  [half of the depth][lane][register], where a lane's input channels are the neighbouring ones that it
//                 also holds of the input fragment
//   fp32          [half of a lane's input channels][lane][4 of them]: lane 2 r + h has row r and channels 8 h ... 8 h +
//   7
void pack(Math math, const auto& at, char* fragment) {
  for (int half = 0; half < 2; half++)
    for (int lane = 0; lane < 32; lane++)
      for (int r = 0; r < 4; r++, fragment += 4) {
        const int row = channel_of_row(lane / 4 + r % 2 * 8), k = lane % 4 * 4 + half * 2 + r / 2;
        const auto narrow = [&](float x) { return uint32_t{math == Math::bf16 ? to_bf16(x) : to_fp16(x)}; };
        const uint32_t bits = math == Math::fp32 ? std::bit_cast<uint32_t>(at(lane % 2 * 8 + half * 4 + r, lane / 2))
                                                 : narrow(at(2 * k, row)) | narrow(at(2 * k + 1, row)) << 16;
        std::memcpy(fragment, &bits, 4);
      }
}

// A member's weights by which a fragment is multiplied, from this channel on.
void add_fragment(const Planner& p, std::vector<char>& stream, const Multiplied& m, const Member& member, int channel) {
  const int in_turn = size_of(member), outputs = member[0].instruction->channels, in_chunk = p.depth / kChunks;
  const auto at = [&](int k, int row) {
    const size_t c = k / in_chunk;
    if (c >= m.chunks.size()) return 0.f;
    const Chunk& chunk = m.chunks[c];
    const int in = chunk.first + k % in_chunk, of_all = channel + row, out = of_all / in_turn;
    const bool is_there = in < p.timeline.channels(chunk.read.value) && out < outputs;
    return is_there ? member[of_all % in_turn].taps[chunk.tap].weight[int64_t{in} * outputs + out] : 0.f;
  };
  stream.resize(stream.size() + kWeightBytes);
  if (!m.filling) pack(p.math, at, &stream[stream.size() - kWeightBytes]);
}

// A warp's weights in the order in which it multiplies by them.
std::vector<char> weight_stream(const Planner& p, const SweepDraft& sweep, int rank, int warp) {
  std::vector<char> stream;
  for (int k = sweep.first; k < sweep.end; k++)
    for (const Part& part : p.drafts[k].parts) {
      const auto mine = p.share_of(part.tiles, rank);
      for (int t = warp - part.first_warp; t >= 0 && t < mine.count; t += kWarps)
        for (const Multiplied& m : part.multiplied)
          for (int k = 0; k < part.product.members; k++) {
            const int channel = part.first_channel + ((mine.first + t) * part.wide + k % part.wide) * kTileChannels;
            add_fragment(p, stream, m, part.members[k % part.members.size()], channel);
          }
    }
  return stream;
}

std::vector<Weights> add_weights(const Planner& p, std::vector<char>& bytes, const SweepDraft& sweep, int rank) {
  std::vector<Weights> result;
  for (int warp = 0; warp < kWarps; warp++) {
    std::vector<char> stream = weight_stream(p, sweep, rank, warp);
    const int size = static_cast<int>(stream.size());
    // What a warp has in flight goes on at the beginning.
    for (int k = 0; k < kBatchesAhead * kBatch * kWeightBytes; k++) stream.push_back(size ? stream[k] : char{0});
    result.push_back({append(bytes, stream), size});
  }
  return result;
}

}  // namespace

Plan assembled(Planner& p, int most_shared_bytes) {
  Layout& l = p.layout;
  if (p.sweeps.size() > kMostSweeps) throw std::invalid_argument("the program goes over a row too often");
  const uint32_t view_bytes = complete_views(p);
  std::vector<char> bytes;
  const auto table = [&](const auto& items) { return l.tables + static_cast<uint32_t>(append(bytes, items)); };
  add_tables(p, table);
  for (SweepDraft& sweep : p.sweeps) {
    const std::vector<Record> records = records_of(p, sweep, 0);
    SweepPlan& plan = l.sweeps[l.n_sweeps++] = sweep.plan;
    plan.edges = size_of(sweep.edges), plan.slots = size_of(sweep.slots), plan.late_batches = size_of(sweep.late);
    plan.records = table(records), plan.weights = table(std::vector<Weights>(kWarps));
    for (uint32_t& record : plan.first_copies)
      if (record != kNowhere) record = offset<Record>(plan.records, record);
    plan.edge_table = table(sweep.edges), plan.slot_table = table(sweep.slots), plan.late_table = table(sweep.late);
    set_steps(p, plan);
  }
  l.conditions = table(conditions_of(p.program));
  l.table_bytes = static_cast<uint32_t>(bytes.size());
  l.first_view = l.tables + l.table_bytes;
  l.both_views = 2 * l.first_view + view_bytes;
  const int64_t shared_bytes = l.first_view + 2 * int64_t{view_bytes};
  if (shared_bytes > most_shared_bytes)
    throw std::invalid_argument("a column step needs " + std::to_string(shared_bytes) +
                                " bytes of shared memory, and a block has " + std::to_string(most_shared_bytes));
  const std::vector<char> tables = bytes;
  for (int rank = 1; rank < l.cluster; rank++) append(bytes, tables);
  l.floats = append(bytes, p.floats);
  // What each block of a cluster has of its own.
  Plan plan{l, {}, static_cast<int>(shared_bytes), 0, {}};
  for (int k = 0; k < l.n_sweeps; k++) {
    SweepDraft& sweep = p.sweeps[k];
    SweepFacts& facts = plan.sweeps.emplace_back(SweepFacts{sweep.end - sweep.first, 0, 0});
    for (int r = sweep.first; r < sweep.end; r++) facts.value_bytes += int64_t{p.drafts[r].copies.count} * p.column;
    for (int rank = 0; rank < l.cluster; rank++) {
      const auto write = [&](const auto& items, uint32_t table) {
        const size_t at = rank * size_t{l.table_bytes} + table - l.tables;
        std::memcpy(bytes.data() + at, items.data(), items.size() * sizeof(items[0]));
      };
      write(records_of(p, sweep, rank), l.sweeps[k].records);
      const std::vector<Weights> weights = add_weights(p, bytes, sweep, rank);
      write(weights, l.sweeps[k].weights);
      int64_t size = 0;
      for (const Weights& w : weights) size += w.bytes;
      plan.weight_bytes += size;
      facts.weight_bytes = std::max(facts.weight_bytes, size);
    }
  }
  plan.constants = std::move(bytes);
  return plan;
}

}  // namespace pcf::cuda
