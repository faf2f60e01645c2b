"""What vistrain relies on in other packages without their promise: one file for each package, and a test for each.

A name that begins with `_` there may change in any release; its use stands here, with what is relied on, and nowhere
else. Each file imports its package alone.
"""
