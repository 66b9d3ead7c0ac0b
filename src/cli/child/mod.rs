//! Running a command as a child process, in a process group of its own that ends with it (P6): what `each` and `run`
//! share.
//!
//! `exec` starts a child and sees it to its end, `pipes` are what it reads and writes, `orphans` are those that it
//! leaves behind, `words` is how it is spoken of. Nothing in this room knows why a child is run, or what its end means.

pub(crate) mod exec;
pub(crate) mod orphans;
pub(crate) mod pipes;
pub(crate) mod words;
