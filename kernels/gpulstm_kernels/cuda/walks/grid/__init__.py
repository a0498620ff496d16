"""All of time in one launch, the recurrent weights spread over the registers of many blocks."""
