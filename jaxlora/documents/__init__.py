"""What is written of a trained run for those who were not there: its model card, and the TRIPOD+AI checklist."""
