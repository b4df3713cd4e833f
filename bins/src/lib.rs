//! What the three programs share: configuration, command line, exit codes, logs; and one module for each program.
//!
//! Read in this order: [`exit`], [`suite`], [`config`], [`cop`], [`manager`], [`server`], [`drill`], [`top`].
//! `cop`, `drill` and the shared modules never name the engine or the proxy: cop must stay tiny (tests/tidy.rs checks).

pub mod cli;
pub mod commands;
pub mod config;
pub mod control;
pub mod cop;
pub mod drill;
pub mod exit;
pub mod exposition;
pub mod import;
pub mod logging;
pub mod manager;
pub mod names;
pub mod orders;
pub mod privileges;
pub mod server;
pub mod state_file;
pub mod suite;
pub mod sweep;
pub mod top;
pub mod ward;
