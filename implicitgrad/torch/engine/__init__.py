"""The engine: a user's map taken apart (``flat``), and the implicit function theorem on it (``implicit``)."""
