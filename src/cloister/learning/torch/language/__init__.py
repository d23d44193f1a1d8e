"""Language models of a plan: a base that stands in files, and what of it is trained; needs the extra `llm`.

pretrained.py  configuration, tokenizer and weights from `ModelFiles`; nothing fetched, unpickled or run
base.py        what a plan starts from, checked before any weight is read
words.py       the tokenizer: texts to `Examples`, and which of their tokens are learnt; tokenising.py where
               it fails, chatmasks.py conversations, cutting.py rows too long, packing.py several in one
examples.py    rows as tokens; no torch
adapters.py    peft's LoRA layers
module.py      base and head as one module that mixes no rows; standing.py what the head takes off
build.py       from files to that module; quantised.py in 4 bits
vector.py      some of its parameters as one float32 vector
parameters.py  what a plan trains of a base: order, start, digests
passing.py     rows through the module; evaluation.py their sums
training.py    local steps on that vector, without privacy
learner.py     `LanguageLearner`: losses, predictions, training, answers
generation.py  answers to prompts, token by token
private.py     single rows' gradients, clipped; rows.py such rows; units.py whole persons' updates
facts.py       what hub and site know, stated without weights
ranks.py       one site on several processes: rankprocess.py the others, rankwire.py what they are told,
               team.py who takes which rows

This package stays empty: importing a module of it says what is needed.
"""
