"""Language models inside the walled worker: loading, generating, embedding; torch and transformers live here.

    folder.py   which files a model may have, and what its configuration may ask for; no torch
    weights.py  safetensors into tensors, one at a time
    load.py     files -> model and tokenizer -> engine
    engine.py   many requests at once, by the continuous batching of transformers
    drawing.py  which token comes next
    text.py     tokens into text as they come; stop texts; no torch
    tools.py    tool calls out of text; no torch
    vectors.py  embeddings

What is imported from here by name is imported when it is needed: `import cloister.inference.language` loads
neither torch nor transformers.
"""
