//! Storage in `sled`: the default engine. The only file that names it.
