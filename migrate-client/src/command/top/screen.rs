//! The terminal while `memdex top` has it: raw mode, the other screen, keys; and giving it back on every way out.

use std::{
    io::{self, Read, Write},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use crossterm::{
    cursor::{Hide, MoveTo, Show},
    execute, queue,
    style::Print,
    terminal::{
        self, Clear, ClearType, DisableLineWrap, EnableLineWrap, EnterAlternateScreen, LeaveAlternateScreen,
    },
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

/// Whether the terminal is ours now. One process has one terminal.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// What the person wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Leave,
    Interrupt,
    /// The window has another size now, or the person asked for it (Ctrl-L).
    Redraw,
}

/// The terminal, given back when dropped.
pub(super) struct Screen {
    keys: mpsc::UnboundedReceiver<Key>,
    resized: Signal,
}

impl Screen {
    pub(super) fn take() -> io::Result<Self> {
        let resized = signal(SignalKind::window_change())?;
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            previous(info);
        }));
        TAKEN.store(true, Ordering::SeqCst);
        terminal::enable_raw_mode()?;
        execute!(io::stdout(), EnterAlternateScreen, Hide, DisableLineWrap)?;
        Ok(Self { keys: read_keys(), resized })
    }

    /// Draws lines over the old ones. What does not fit the window is left out, and the last line stays.
    pub(super) fn draw(&mut self, lines: &[String]) -> io::Result<()> {
        let (columns, rows) = terminal::size().unwrap_or((80, 24));
        let mut out = Vec::new();
        for (row, line) in fit(lines, rows).enumerate() {
            let line: String = line.chars().take(usize::from(columns)).collect();
            queue!(out, MoveTo(0, row as u16), Print(line), Clear(ClearType::UntilNewLine))?;
        }
        queue!(out, Clear(ClearType::FromCursorDown))?;
        // In one write, so that nobody sees half a frame.
        let mut stdout = io::stdout();
        stdout.write_all(&out)?;
        stdout.flush()
    }

    /// The next thing the person wants.
    pub(super) async fn key(&mut self) -> Key {
        tokio::select! {
            // No more keys: the terminal is gone.
            key = self.keys.recv() => key.unwrap_or(Key::Leave),
            _ = self.resized.recv() => Key::Redraw,
        }
    }

    /// The next key that is not [`Key::Redraw`].
    pub(super) async fn key_that_leaves(&mut self) -> Key {
        loop {
            match self.key().await {
                Key::Redraw => {}
                key => return key,
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal back, if it was taken; may be called any number of times.
pub(in crate::command) fn restore() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        let _ = execute!(io::stdout(), EnableLineWrap, Show, LeaveAlternateScreen);
        let _ = terminal::disable_raw_mode();
    }
}

/// As many lines as the window has rows; the last line (what went wrong, the keys) is always there.
fn fit(lines: &[String], rows: u16) -> impl Iterator<Item = &String> {
    let rows = usize::from(rows);
    let (body, last) = lines.split_at(lines.len().saturating_sub(1));
    body.iter().take(rows.saturating_sub(last.len())).chain(last)
}

/// Reads keys on a thread of its own, which ends with the process: a read from a terminal cannot be taken back.
fn read_keys() -> mpsc::UnboundedReceiver<Key> {
    let (sender, keys) = mpsc::unbounded_channel();
    thread::spawn(move || {
        let mut input = io::stdin().lock();
        let mut bytes = [0; 64];
        while let Ok(length @ 1..) = input.read(&mut bytes) {
            if let Some(key) = meaning(&bytes[..length])
                && sender.send(key).is_err()
            {
                break;
            }
        }
    });
    keys
}

/// The first key among these bytes that means something. Arrow keys and the like come as ESC and more bytes, in one
/// piece: only an ESC that is the last byte is the key itself.
fn meaning(bytes: &[u8]) -> Option<Key> {
    let mut left = bytes;
    loop {
        left = match left {
            [] => return None,
            [b'q' | b'Q' | b'\x04', ..] | [b'\x1b'] => return Some(Key::Leave),
            [b'\x03', ..] => return Some(Key::Interrupt),
            [b'\x0c', ..] => return Some(Key::Redraw),
            // ECMA-48: a control sequence ends with its first byte from @ to ~.
            [b'\x1b', b'[', rest @ ..] => {
                let end = rest.iter().position(|byte| matches!(byte, b'@'..=b'~'))?;
                &rest[end + 1..]
            }
            [b'\x1b', b'O', _, rest @ ..] | [b'\x1b', _, rest @ ..] | [_, rest @ ..] => rest,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_keys_that_are_meant_leave() {
        assert_eq!(meaning(b"q"), Some(Key::Leave));
        assert_eq!(meaning(b"\x1b"), Some(Key::Leave));
        assert_eq!(meaning(b"\x03"), Some(Key::Interrupt));
        assert_eq!(meaning(b"\x1b[A\x1bOq\x1bq\x1b[15~\x1b["), None);
        assert_eq!(meaning(b"\x1b[A\x1b[1;5Bx\x03"), Some(Key::Interrupt));
        assert_eq!(meaning(b"x"), None);
    }

    #[test]
    fn the_last_line_is_kept_in_a_small_window() {
        let lines: Vec<_> = ["a", "b", "c", "end"].map(str::to_owned).into();
        let shown = |rows| fit(&lines, rows).cloned().collect::<Vec<_>>().join(" ");
        assert_eq!(shown(9), "a b c end");
        assert_eq!(shown(3), "a b end");
        assert_eq!(shown(1), "end");
        assert_eq!(fit(&[], 5).count(), 0);
    }
}
