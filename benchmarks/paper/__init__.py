"""The experiments of Liao et al., *Reviving and Improving Recurrent Back-Propagation*, ICML 2018, with implicitgrad.

``python -m benchmarks.paper hopfield|citation|propositions``, from the root of the repository; see
``docs/reproduction.md`` for what came out.
"""
