//! The options of `tidegate run`, and what its help says.

use std::path::PathBuf;

use clap::Args;
use clap::builder::PossibleValuesParser;

use super::config::{Flag, FlagValue};
use super::log::{Format, Level};
use crate::worker::MAX_CONCURRENT_JOBS;

pub(crate) const EXITS: &str = "\
Exit status:
    0  stopped as asked: every job was finished or handed back
    1  stopped as asked, but some jobs were still held at the deadline: they
       come again when their leases have run out
    2  the command line makes no sense
   69  the source can't be opened, or has failed for good
   70  something that should not happen did
   78  the configuration makes no sense, or names what is not there";

// At most 78 columns wide, so that no terminal breaks a line of an example.
pub(crate) const MORE: &str = "\
The configuration is TOML. A kind of jobs is given to a command, which gets
the payload on its standard input, or to an HTTP endpoint, as a POST:
  source = \"sqlite:/var/lib/tidegate/jobs.sqlite\"

  [worker]
  max_concurrent_jobs = 20

  [kinds.resize]
  exec = [\"/usr/local/bin/resize\", \"--fast\"]
  timeout = \"1m\"

  [kinds.\"mail.send\"]
  http = \"http://127.0.0.1:8080/jobs/mail\"
  headers = { Authorization = { env = \"MAIL_AUTH\" } }
docs/operations.md has all keys; docs/tidegate.toml is an example to copy.
Relative paths in it begin in its own folder.

A variable such as TIDEGATE_WORKER__MAX_CONCURRENT_JOBS=5 comes before the
file, and a flag before both. A variable TIDEGATE_… that is no key is refused.

Signals:
  TERM, INT  first: take no more jobs, and let those that run finish until
             the shutdown deadline is near; second: tell them to stop;
             third: end them. What did not finish is handed back, uncounted
  QUIT       end at once, as by the third
  HUP        read the configuration again. Kinds, queues, concurrency, log,
             retries and timeouts change at once, for jobs that are not yet
             taken; other keys need a restart, which is said. If it makes no
             sense, that is said, and nothing is changed
  TSTP       take no more jobs until CONT comes
  USR1       log the jobs in hand, and the figures
";

/// The options of `tidegate run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The configuration
    #[arg(short, long, value_name = "FILE", env = "TIDEGATE_CONFIG")]
    config: PathBuf,

    /// Only say whether the configuration makes sense, and whether the programs, folders, secrets and certificates that
    /// it names are there. The source is not opened, and no endpoint is asked
    #[arg(long)]
    pub(crate) check: bool,

    /// Where jobs come from, such as sqlite:jobs.sqlite [default: as the configuration says]
    #[arg(long, value_name = "URL")]
    source: Option<String>,

    /// Run at most so many at once [default: as the configuration says]
    #[arg(short = 'j', long, value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=MAX_CONCURRENT_JOBS as i64))]
    max_concurrent_jobs: Option<u32>,

    /// From which level on events are logged [default: as the configuration says]
    #[arg(long, value_name = "LEVEL", value_parser = words(Level::WORDS))]
    log_level: Option<String>,

    /// How the log looks: auto is human on a terminal, and json otherwise [default: as the configuration says]
    #[arg(long, value_name = "FORMAT", value_parser = words(Format::WORDS))]
    log_format: Option<String>,
}

fn words<T>(words: &[(&'static str, T)]) -> PossibleValuesParser {
    PossibleValuesParser::new(words.iter().map(|(word, _)| *word))
}

impl RunArgs {
    pub(crate) fn config(&self) -> &PathBuf {
        &self.config
    }

    /// The flags that were given, as what they set in the configuration.
    pub(crate) fn flags(&self) -> Vec<Flag> {
        let text = |value: &Option<String>| value.clone().map(FlagValue::Text);
        let flag =
            |name, table, key, value: Option<FlagValue>| Some(Flag { name, table, key, value: value? });
        let jobs = self.max_concurrent_jobs.map(FlagValue::Count);
        let flags = [
            flag("--source", None, "source", text(&self.source)),
            flag("--max-concurrent-jobs", Some("worker"), "max_concurrent_jobs", jobs),
            flag("--log-level", Some("log"), "level", text(&self.log_level)),
            flag("--log-format", Some("log"), "format", text(&self.log_format)),
        ];
        flags.into_iter().flatten().collect()
    }
}
