"""Seeds times hyperparameters: planned, trained side by side, kept in one dataset."""
