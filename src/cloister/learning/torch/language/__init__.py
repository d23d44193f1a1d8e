"""Language models of a plan: a base that stands in files, and what of it is trained; needs the extra `llm`.

pretrained.py  configuration, tokenizer and weights from `ModelFiles`; nothing fetched, unpickled or run
adapters.py    peft's LoRA layers, and A as the seed draws it
module.py      base and head as one module that mixes no rows
training.py    local steps on one flat vector, without privacy
learner.py     `LanguageLearner`: parameters as float32 vector, losses, predictions, training
generation.py  answers to prompts, token by token
ranks.py       one site on several processes

This package stays empty: importing a module of it says what is needed.
"""
