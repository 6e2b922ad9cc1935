//! The `globalfs` command: the only place that reads configuration files, draws tables and starts processes.

mod args;
mod bench;
mod commands;
mod config;
mod exit;
mod hint;
mod mounts;
mod output;
mod supervise;
mod telemetry;
mod units;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use crate::output::tell;
use args::Cli;
use exit::{Exit, Failure};

/// Most of what is allocated here is freed by another thread, which the system's allocator does at a much higher price.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// mount(8) calls helpers by this name.
const MOUNT_HELPER: &str = "mount.globalfs";

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let called_as = arguments.first().map(Path::new).and_then(Path::file_name);
    if called_as.is_some_and(|name| name == MOUNT_HELPER) {
        return commands::mount::helper(&arguments[1..]);
    }
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too, on stdout.
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Done };
            let _ = error.print();
            return ExitCode::from(exit as u8);
        }
    };
    output::init(cli.globals.no_color);
    let done = commands::run(cli).and_then(|exit| match output::trouble() {
        Some(error) => Err(anyhow::Error::from(error).context("stdout").into()),
        None => Ok(exit),
    });
    match done {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(failure) => {
            report(&failure);
            ExitCode::from(failure.exit as u8)
        }
    }
}

/// One line on stderr, the causes in it.
fn report(failure: &Failure) {
    // A reader that has gone away (`globalfs status | head`) is not worth a message.
    let io_error = failure.error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>());
    if io_error.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe) {
        return;
    }
    tell!("{} {}", output::red("globalfs:"), failure.message());
}
