"""All of time in one launch, the recurrent weights in the registers of one block."""
