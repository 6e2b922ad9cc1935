//! `-o` options, as mount(8) and fstab write them.

use std::path::PathBuf;

use clap::ValueEnum;
use fs_client::KernelCache;

use crate::hint;
use crate::units::{ByteSize, TimeSpan};

/// What becomes of calls that need a region that cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnCut {
    /// They wait until it is back, or until Ctrl-C
    Block,
    /// They fail at the deadline, and at once where nobody has answered for that long
    Error,
}

impl From<OnCut> for fs_client::OnCut {
    fn from(on_cut: OnCut) -> fs_client::OnCut {
        match on_cut {
            OnCut::Block => fs_client::OnCut::Block,
            OnCut::Error => fs_client::OnCut::Error,
        }
    }
}

/// How new answers must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Consistency {
    /// They have all that this mount has seen, and what led to it
    Causal,
    /// They have all that was acknowledged anywhere before the call
    Linearizable,
}

impl From<Consistency> for fs_client::Consistency {
    fn from(consistency: Consistency) -> fs_client::Consistency {
        match consistency {
            Consistency::Causal => fs_client::Consistency::Causal,
            Consistency::Linearizable => fs_client::Consistency::Linearizable,
        }
    }
}

/// What `-o` may say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OptionList {
    /// `region=NAME`.
    pub region: Option<String>,
    /// `config=FILE`.
    pub config: Option<PathBuf>,
    /// `identity=NAME`: which client certificate to show.
    pub identity: Option<String>,
    /// `deadline=30s`.
    pub deadline: Option<TimeSpan>,
    /// `on_cut=error`.
    pub on_cut: Option<OnCut>,
    /// `consistency=causal`.
    pub consistency: Option<Consistency>,
    /// `memory=256MiB`.
    pub memory: Option<ByteSize>,
    /// `cache_dir=DIR`.
    pub cache_dir: Option<PathBuf>,
    /// `cache_size=1GiB`.
    pub cache_size: Option<ByteSize>,
    /// `log=FILE`.
    pub log: Option<PathBuf>,
    /// `threads=2`.
    pub threads: Option<usize>,
    /// `kernel_cache=on`.
    pub kernel_cache: Option<KernelCache>,
    /// `ro`.
    pub read_only: bool,
    /// `nodev`.
    pub no_dev: bool,
    /// `nosuid`.
    pub no_suid: bool,
    /// `noexec`.
    pub no_exec: bool,
    /// `private`: only for the user who mounts.
    pub private: bool,
}

const THREADS_MAX: usize = 64;
/// With a value.
const VALUED: [&str; 12] = [
    "region",
    "config",
    "identity",
    "deadline",
    "on_cut",
    "consistency",
    "memory",
    "cache_dir",
    "cache_size",
    "log",
    "threads",
    "kernel_cache",
];
/// Without.
const FLAGS: [&str; 11] =
    ["ro", "rw", "dev", "nodev", "suid", "nosuid", "exec", "noexec", "allow_other", "private", "defaults"];
/// Meant for mount(8), systemd or other file systems; harmless here.
const IGNORED: [&str; 23] = [
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "_netdev",
    "nofail",
    "async",
    "sync",
    "dirsync",
    "atime",
    "noatime",
    "relatime",
    "norelatime",
    "strictatime",
    "lazytime",
    "nolazytime",
    "silent",
    "loud",
    "diratime",
    "nodiratime",
];

impl OptionList {
    /// Adds a list such as `ro,deadline=10s`. With `sloppy` unknown options are passed over.
    pub fn add(&mut self, list: &str, sloppy: bool) -> Result<(), String> {
        for option in list.split(',').map(str::trim).filter(|option| !option.is_empty()) {
            let (key, value) = match option.split_once('=') {
                Some((key, value)) => (key, Some(value)),
                None => (option, None),
            };
            self.set(key, value, sloppy).map_err(|problem| format!("option {option:?}: {problem}"))?;
        }
        Ok(())
    }

    fn set(&mut self, key: &str, value: Option<&str>, sloppy: bool) -> Result<(), String> {
        if VALUED.contains(&key) {
            let value = value.filter(|value| !value.is_empty()).ok_or("a value is missing")?;
            return self.set_value(key, value);
        }
        if FLAGS.contains(&key) && value.is_none() {
            self.set_flag(key);
            return Ok(());
        }
        if key == "remount" {
            return Err("a mount cannot be changed: unmount it and mount it again".into());
        }
        if IGNORED.contains(&key) || key.starts_with("x-") || key == "comment" || sloppy {
            return Ok(());
        }
        Err(format!("not known{}", hint::suggestion(key, VALUED.iter().chain(&FLAGS).copied())))
    }

    fn set_value(&mut self, key: &str, value: &str) -> Result<(), String> {
        let size = || value.parse::<ByteSize>().map_err(|error| error.to_string());
        match key {
            "region" => self.region = Some(value.into()),
            "config" => self.config = Some(value.into()),
            "identity" => self.identity = Some(value.into()),
            "deadline" => self.deadline = Some(value.parse::<TimeSpan>().map_err(|error| error.to_string())?),
            "on_cut" => self.on_cut = Some(OnCut::from_str(value, false).map_err(|_| "block and error are possible")?),
            "consistency" => {
                let known = Consistency::from_str(value, false);
                self.consistency = Some(known.map_err(|_| "causal and linearizable are possible")?);
            }
            "memory" => self.memory = Some(size()?),
            "cache_dir" => self.cache_dir = Some(value.into()),
            "cache_size" => self.cache_size = Some(size()?),
            "log" => self.log = Some(value.into()),
            "threads" => {
                let threads = value.parse().ok().filter(|threads| (1..=THREADS_MAX).contains(threads));
                self.threads = Some(threads.ok_or_else(|| format!("1 to {THREADS_MAX} are possible"))?);
            }
            "kernel_cache" => {
                self.kernel_cache = Some(match value {
                    "off" => KernelCache::Off,
                    "on" => KernelCache::Attributes,
                    "names" => KernelCache::Names,
                    _ => return Err("on, off and names are possible".into()),
                });
            }
            _ => return Err("not known".into()),
        }
        Ok(())
    }

    /// The last one counts, as everywhere in fstab.
    fn set_flag(&mut self, key: &str) {
        match key {
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "nodev" => self.no_dev = true,
            "dev" => self.no_dev = false,
            "nosuid" => self.no_suid = true,
            "suid" => self.no_suid = false,
            "noexec" => self.no_exec = true,
            "exec" => self.no_exec = false,
            "private" => self.private = true,
            "allow_other" => self.private = false,
            _ => *self = OptionList { read_only: false, no_dev: false, no_suid: false, no_exec: false, ..self.clone() },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(list: &str) -> Result<OptionList, String> {
        let mut options = OptionList::default();
        options.add(list, false).map(|()| options)
    }

    #[test]
    fn fstab_options_are_read_or_ignored() {
        let options =
            parse("rw,_netdev,nofail,x-systemd.requires=net,region=eu,deadline=10s,nosuid,cache_size=2GiB").unwrap();
        assert_eq!(options.region.as_deref(), Some("eu"));
        assert_eq!(options.deadline.unwrap().to_string(), "10s");
        assert_eq!(options.cache_size, Some(ByteSize(2 << 30)));
        assert!(options.no_suid && !options.read_only);
        assert_eq!(parse("kernel_cache=names").unwrap().kernel_cache, Some(KernelCache::Names));
        let options = parse("on_cut=block,consistency=linearizable").unwrap();
        assert_eq!((options.on_cut, options.consistency), (Some(OnCut::Block), Some(Consistency::Linearizable)));
        assert!(parse("on_cut=wait").unwrap_err().contains("block and error"));
        assert!(parse("consistency=strong").unwrap_err().contains("causal and linearizable"));
        assert!(parse("kernel_cache=yes").unwrap_err().contains("on, off and names"));
    }

    #[test]
    fn wrong_options_are_named_with_a_hint() {
        assert!(parse("dealine=10s").unwrap_err().contains("did you mean \"deadline\"?"));
        assert!(parse("deadline=10").unwrap_err().contains("no unit"));
        assert!(parse("deadline").unwrap_err().contains("a value is missing"));
        assert!(parse("remount,ro").unwrap_err().contains("unmount it"));
        assert!(parse("threads=0").unwrap_err().contains("1 to 64"));
        let mut options = OptionList::default();
        options.add("whatever=1", true).unwrap();
        assert_eq!(options, OptionList::default());
    }
}
