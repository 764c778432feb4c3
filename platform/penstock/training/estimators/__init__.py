"""The families of models that a run can fit."""
