"""How to talk to each system: protocols, and the implementations that `workers/` puts in place."""
