//! `tidegate completions`: what a shell needs to complete our command lines.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::Exit;
use super::args::Cli;
use super::stdout::print;

// At most 78 columns wide, so that no terminal breaks a line of an example.
pub(crate) const MORE: &str = "\
Examples:
  For this bash, and for all to come:
      source <(tidegate completions bash)
      tidegate completions bash > \\
          ~/.local/share/bash-completion/completions/tidegate
  For zsh, in a folder of its fpath, and for fish:
      tidegate completions zsh > ~/.zfunc/_tidegate
      tidegate completions fish > ~/.config/fish/completions/tidegate.fish
";

/// The options of `tidegate completions`.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// Which shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Writes the script to standard output.
pub(crate) fn run(args: &CompletionsArgs) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "tidegate", &mut script);
    print(&script).map_or_else(|exit| exit, |()| Exit::Done)
}
