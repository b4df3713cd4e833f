//! What the three programs share: configuration, command line, exit codes, logs; and one module for each program.
//!
//! Read in this order: [`exit`], `config`, `cop`, `manager`, `server`, `drill`.
//! `cop`, `drill` and the shared modules never name `engine` or `proxy`: cop must stay tiny (tests/tidy.rs checks).

pub mod control;
pub mod exit;
