"""Language models inside the walled worker: loading, generating, embedding; torch and transformers live here.

    folder.py    which files a model may have, and what its configuration may ask for; no torch
    weights.py   safetensors into tensors, one at a time
    words.py     the tokenizer
    load.py      files -> tokenizer and model -> engine
    engine.py    prompts in, pieces of text out; embeddings
    batching.py  many requests at once, and what becomes of each
    manager.py   the continuous batching of transformers, with settings and corrections
    drawing.py   which token comes next
    vectors.py   token vectors into one
    text.py      tokens into text as they come; stop texts; no torch
    tools.py     tool calls out of text; no torch

To use: `load.load_engine`. `import cloister.inference.language` loads neither torch nor transformers, and nor
does `load` before it is called.
"""
