"""Language models inside the walled worker: loading, generating, embedding; torch and transformers live here.

    words.py     the tokenizer
    load.py      files -> tokenizer and model -> engine
    engine.py    prompts in, pieces of text out; embeddings
    batching.py  many requests at once, and what becomes of each
    manager.py   the continuous batching of transformers, with settings and corrections
    drawing.py   which token comes next
    vectors.py   token vectors into one
    text.py      tokens into text as they come; stop texts; no torch
    tools.py     tool calls out of text; no torch

What a model's directory may hold is in `cloister.learning.modelfiles`, its weights are read by
`cloister.learning.torch.weights`: training needs both, too.

To use: `load.load_engine`. `import cloister.inference.language` loads neither torch nor transformers, and nor
does `load` before it is called.
"""
