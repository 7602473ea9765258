//! Files in and out: features, captions, tokens, batches, weights. No GPU in it.
