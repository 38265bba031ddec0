"""The parts of the service that are not methods: jobs, files, models, methods, keys, audit trail."""
