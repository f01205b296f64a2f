"""The paper's matrix experiments and those beyond it, by name."""
