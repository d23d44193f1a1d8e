"""Language models of a plan, as far as they need no torch: how texts are read, and how parameters lie.

Nothing is imported here: `layout` stands below the rest of learning, the other modules above it.
"""
