"""A model and its optimizer over many ranks: meshes, the sharding table, and what each axis does. Outside the model."""
