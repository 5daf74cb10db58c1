//! Child processes that end with this process, however it ends. A janitor process waits for the end of a pipe, then
//! kills the registered processes and removes the temporary folder.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

const JANITOR: &str = r#"
trap '' INT TERM HUP
pids=" "
while read -r sign pid; do
  case $sign in
    +) pids="$pids$pid " ;;
    -) pids=$(printf '%s' "$pids" | sed "s/ $pid / /") ;;
  esac
done
for pid in $pids; do kill -9 "$pid" 2>/dev/null; done
sleep 0.2
rm -rf "$1"
"#;

struct Janitor {
    pipe: Mutex<ChildStdin>,
    folder: PathBuf,
}

fn janitor() -> &'static Janitor {
    static JANITOR_PROCESS: OnceLock<Janitor> = OnceLock::new();
    JANITOR_PROCESS.get_or_init(|| {
        let folder = std::env::temp_dir().join(format!("llmtune-webhooks-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        // It outlives this process, so its exit status is never collected.
        #[allow(clippy::zombie_processes)]
        let mut child = Command::new("sh")
            .args(["-c", JANITOR, "janitor"])
            .arg(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        Janitor { pipe: Mutex::new(child.stdin.take().unwrap()), folder }
    })
}

fn notify(sign: char, pid: u32) {
    let mut pipe = janitor().pipe.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    writeln!(pipe, "{sign} {pid}").unwrap();
}

/// Creates a folder that is removed with this process.
pub fn temporary_folder(name: &str) -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let folder = janitor().folder.join(format!("{name}-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// A loopback port that was free at the time of the call.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A child process; killed when dropped.
pub struct Process {
    child: Child,
    pub name: String,
    pub log: PathBuf,
    ended: bool,
}

impl Process {
    /// Starts it with its output in a log file.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        notify('+', child.id());
        Self { child, name: name.into(), log: log.to_path_buf(), ended: false }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by name, such as `TERM`.
    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([format!("-{signal}"), self.pid().to_string()]).status().unwrap();
        assert!(status.success(), "kill -{signal} {}", self.name);
    }

    /// Stops all its threads with SIGSTOP, and returns once they have stopped (Linux).
    pub fn freeze(&self) {
        self.signal("STOP");
        let begun = Instant::now();
        while self.state() != Some('T') {
            assert!(begun.elapsed() < Duration::from_secs(5), "{} does not stand still", self.name);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Resumes it with SIGCONT.
    pub fn thaw(&self) {
        self.signal("CONT");
    }

    /// Sends SIGTERM, and waits until it has ended.
    pub fn stop(&mut self, limit: Duration) -> ExitStatus {
        self.signal("TERM");
        self.wait(limit)
    }

    fn state(&self) -> Option<char> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).ok()?;
        stat.rsplit(") ").next()?.chars().next()
    }

    /// The exit status, once it has ended.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        let status = self.child.try_wait().unwrap()?;
        if !self.ended {
            self.ended = true;
            notify('-', self.pid());
        }
        Some(status)
    }

    /// Waits until it has ended.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.try_wait() {
                return status;
            }
            assert!(begun.elapsed() < limit, "{} did not end within {limit:?}\n{}", self.name, self.log_tail());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Kills it with SIGKILL and waits until it has ended.
    pub fn kill(&mut self) {
        if self.try_wait().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
            if !self.ended {
                self.ended = true;
                notify('-', self.pid());
            }
        }
    }

    pub fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The last 4 KiB of the log.
    pub fn log_tail(&self) -> String {
        let Ok(mut file) = File::open(&self.log) else { return String::new() };
        let length = file.metadata().map(|metadata| metadata.len()).unwrap_or_default();
        let _ = file.seek(SeekFrom::Start(length.saturating_sub(4096)));
        let mut bytes = Vec::new();
        let _ = file.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// User and system time so far, in seconds (Linux).
    pub fn cpu_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        let after = stat.rsplit(") ").next().unwrap_or_default();
        let fields: Vec<&str> = after.split(' ').collect();
        let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or_default();
        (ticks(11) + ticks(12)) / 100.0
    }

    /// Resident memory in KiB (Linux).
    pub fn resident_kib(&self) -> u64 {
        self.status_kib("VmRSS:")
    }

    /// A field of `/proc/PID/status` in KiB, such as `VmHWM:` (Linux).
    pub fn status_kib(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or_default()
    }
}

/// Whether this process has an IPv4 connection between these local and remote ports (Linux).
pub fn has_connection(pid: u32, local: u16, remote: u16) -> bool {
    // proc_pid_net(5): sl, local_address, rem_address, st, tx:rx, tr:tm, retrnsmt, uid, timeout, inode.
    let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let (local, remote) = (format!(":{local:04X}"), format!(":{remote:04X}"));
    let sockets: Vec<String> = table
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let between = fields.get(1)?.ends_with(&local) && fields.get(2)?.ends_with(&remote);
            between.then_some(format!("socket:[{}]", fields.get(9)?))
        })
        .collect();
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    descriptors
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .any(|link| sockets.iter().any(|socket| link.as_os_str() == socket.as_str()))
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
