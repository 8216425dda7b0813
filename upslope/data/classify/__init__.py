"""Text classifiers: features, training, artifact and card; a taxonomy with a teacher and a student; triage of machine-written text."""
