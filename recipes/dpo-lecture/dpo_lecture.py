"""DPO on one page: a pair, the reference, the loop, and the curves to watch. README.md says how to run it."""

from pathlib import Path

import pandas as pd
import torch

from preflab.data.encode import Encoder
from preflab.data.pack import pack
from preflab.data.sources import read_pairs
from preflab.losses import dpo, masked_sum
from preflab.models.load import load_policy
from preflab.models.scoring import logprobs_of, response_logprobs

# %% A preference pair: a prompt, the response to it that was preferred, and one that was not.
study, beta = Path("runs/lecture/stages"), 0.1
rows = read_pairs(study / "seed-0/pairs/train.jsonl").rows
print(f"prompt    {rows[0].prompt}\nchosen   {rows[0].chosen}\nrejected {rows[0].rejected}")
# %% The reference is the policy before its first step, so what it says of each response is computed once, and kept.
policy = load_policy(study / "reference/model")
pairs = Encoder(policy.tokenizer, prompt_tokens=16, response_tokens=48).pairs(rows)
of_reference = logprobs_of(policy.model, pairs).view(-1, 2)  # log π_ref(y|x) of each pair: chosen, rejected
# %% The loop: sum each response's own tokens, take the reference's sum away, and raise chosen above rejected.
optimizer, curves = torch.optim.AdamW(policy.model.parameters(), lr=2e-4), []
for indices in torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0)).split(32):
    batch = pack([pairs[i] for i in indices])
    of_policy = masked_sum(response_logprobs(policy.model, batch), batch.mask).view(-1, 2)
    logratio = of_policy - of_reference[indices]
    loss = dpo(*logratio.unbind(1), beta=beta).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    margin = logratio[:, 0] - logratio[:, 1]
    figures = loss, (margin > 0).float().mean(), beta * margin.mean(), *(beta * logratio.mean(0))
    curves.append([figure.item() for figure in figures])
# %% The loss begins at ln 2, where policy and reference agree. Chosen responses may get less likely; the gap must grow.
table = pd.DataFrame(curves, columns=["loss", "accuracy", "margin", "chosen reward", "rejected reward"])
print(table[::4].round(3).to_string())
table.rolling(5).mean().plot(xlabel="step", title="means of 5 steps")
