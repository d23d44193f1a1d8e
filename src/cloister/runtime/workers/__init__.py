"""The worker in a process of its own: what sees plaintext is walled off from what holds keys and the network.

    start = sandbox()                                            # launch: the process, and the walls
    worker = SandboxedWorker(plan, identity, start, vault.hand_over("train", purpose=plan.study.purpose))
    worker.train(worker.initial)

`serve` is the worker's side, `session` and `proxy` the site's, `channel` carries messages between them over
the one pipe there is. `cloister.enclave.sandbox` says what the walls are; this room uses them.

What the walls do not do: what a plan lets out of the worker, its update or its sum, can carry whatever the
worker puts into it. Secure sum and differential privacy are what limits that; a user's own code is read and
allowed by its owner, by hash, for that reason.
"""
