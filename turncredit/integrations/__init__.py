"""SC-GRPO and our environments inside other trainers: `turncredit.integrations.trl`, `turncredit.integrations.verl`."""
