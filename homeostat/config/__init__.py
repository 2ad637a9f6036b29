"""Config schemas: every option as a dataclass, and how a config becomes code."""
