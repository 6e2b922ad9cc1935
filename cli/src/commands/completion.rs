//! `globalfs completion`.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::args::Cli;
use crate::exit::{Exit, Result};
use crate::output::say_all;

/// Options.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  globalfs completion bash > /etc/bash_completion.d/globalfs
  globalfs completion zsh > ~/.zfunc/_globalfs
  globalfs completion fish > ~/.config/fish/completions/globalfs.fish")]
pub struct CompletionArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Writes the script to stdout.
pub fn run(args: &CompletionArgs) -> Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "globalfs", &mut script);
    say_all(&String::from_utf8_lossy(&script));
    Ok(Exit::Done)
}
