#include "generate/network_drafter.h"

#include <algorithm>
#include <map>

#include <mlx/mlx.h>

#include "cache/batch_cache.h"
#include "generate/draft_draw.h"

namespace mlxlm {
namespace {

// A draft that is being made.
struct UnderWay {
  NetworkDrafter* drafter;
  int count;
  DraftDraw draw;
  Proposal* proposal;
};

mx::array row_of(const mx::array& rows, int i) {
  return mx::slice(rows, {i, 0}, {i + 1, rows.shape(1)});
}

std::optional<mx::array> state_of(const NetworkDrafter::Pass& pass, int i) {
  if (!pass.states) return std::nullopt;
  return mx::slice(*pass.states, {0, i, 0}, {1, i + 1, pass.states->shape(2)});
}

// Takes what was read, and draws. Returns whether the draft needs more.
bool go_on(UnderWay& each, const NetworkDrafter::Pass& pass, int place) {
  each.drafter->note_read(state_of(pass, place));
  const auto& token = each.draw.draw(row_of(pass.logits, place));
  if (each.draw.count() < each.count) {
    each.drafter->go_on_with(token);
    return true;
  }
  each.proposal->draft = each.draw.draft();
  each.drafter->end_draft(*each.proposal->draft);
  return false;
}

// Of one network, a token of each at a time.
void draft_together(std::vector<UnderWay> drafts) {
  while (!drafts.empty()) {
    std::vector<NetworkDrafter::Part> parts;
    for (const auto& each : drafts) parts.push_back(each.drafter->next_part());
    std::optional<NetworkDrafter::Pass> pass;
    try {
      pass = drafts[0].drafter->read(parts);
    } catch (...) {
      for (auto& each : drafts) each.proposal->fault = std::current_exception();
      return;
    }
    std::vector<UnderWay> unfinished;
    for (std::size_t i = 0; i < drafts.size(); ++i) {
      try {
        if (go_on(drafts[i], *pass, static_cast<int>(i))) {
          unfinished.push_back(std::move(drafts[i]));
        }
      } catch (...) {
        drafts[i].proposal->fault = std::current_exception();
      }
    }
    drafts = std::move(unfinished);
  }
}

}  // namespace

std::vector<Proposal> propose_all(const std::vector<DraftJob>& jobs) {
  std::vector<Proposal> proposals(jobs.size());
  std::map<const void*, std::vector<UnderWay>> by_network;
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    const auto& [drafter, count, sampling] = jobs[i];
    try {
      auto* network = drafter->network();
      if (network == nullptr) {
        proposals[i].draft = drafter->propose(count, *sampling);
      } else if (network->begin_draft(count)) {
        by_network[network->identity()].push_back(
            {network, count, DraftDraw(*sampling), &proposals[i]});
      }
    } catch (...) {
      proposals[i].fault = std::current_exception();
    }
  }
  for (auto& [_, drafts] : by_network) draft_together(std::move(drafts));
  return proposals;
}

std::optional<Draft> NetworkDrafter::propose(int count,
                                             const Sampling& sampling) {
  auto proposal = propose_all({{this, count, &sampling}})[0];
  if (proposal.fault) std::rethrow_exception(proposal.fault);
  return std::move(proposal.draft);
}

NetworkDrafter::Row NetworkDrafter::join(const std::vector<Part>& parts) {
  std::vector<mx::array> tokens, states;
  std::vector<const PromptCache*> caches;
  std::vector<int> counts;
  Row row{mx::array(0), std::nullopt, {}, {}};
  int end = 0;
  for (const Part& part : parts) {
    tokens.push_back(part.tokens);
    if (part.states) states.push_back(*part.states);
    caches.push_back(part.cache);
    counts.push_back(part.tokens.shape(0));
    row.ends.push_back((end += counts.back()) - 1);
  }
  row.tokens = mx::expand_dims(join_tokens(std::move(tokens), 0), 0);
  if (!states.empty()) row.states = join_tokens(std::move(states), 1);
  row.caches = join_rows(caches, counts);
  return row;
}

}  // namespace mlxlm
