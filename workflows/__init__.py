"""Deterministic orchestration: one operation, one file, one workflow class.

Imports nothing: the SDK's sandbox imports a workflow's module, and with it this package, anew for
each run, so that each run would pay for every workflow that stands here.
"""
