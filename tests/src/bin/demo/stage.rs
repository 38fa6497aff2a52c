//! What the viewer sees: narration, colour, pictures that are drawn again in place. Owns standard output, and knows
//! whether the viewer wants to leave. Colour and redrawing only on a terminal.

use std::{
    io::{self, IsTerminal, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Letters in a line of narration.
const WIDTH: usize = 104;
/// Longest time in which the wish to leave is not noticed.
const STEP: Duration = Duration::from_millis(20);
/// Time between scenes.
const READING: Duration = Duration::from_secs(3);

/// Why the demo does not go on.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The viewer wants to leave.
    Interrupted,
    /// Something does not work; in words.
    Failed(String),
}

/// Colours by what they are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ink {
    Heading,
    Quiet,
    Good,
    Bad,
    /// Content only this host has.
    Own,
    /// Content the other host has too.
    Shared,
}

impl Ink {
    const fn code(self) -> &'static str {
        match self {
            Self::Heading => "1",
            Self::Quiet => "2",
            Self::Good => "92",
            Self::Bad => "91",
            Self::Own => "33",
            Self::Shared => "36",
        }
    }
}

/// Standard output.
#[derive(Debug)]
pub(crate) struct Stage {
    terminal: bool,
    colour: bool,
    leave: Arc<AtomicBool>,
    scene: u32,
    /// Whether the last line was empty: two in a row are one too many.
    blank: bool,
    /// Lines of the picture that the next one replaces.
    drawn: usize,
}

impl Stage {
    /// Takes the terminal, and from now on SIGINT, SIGTERM and SIGHUP.
    pub(crate) fn open() -> io::Result<Self> {
        let leave = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&leave))?;
        }
        let terminal =
            io::stdout().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Ok(Self { terminal, colour, leave, scene: 0, blank: true, drawn: 0 })
    }

    /// Whether pictures can be drawn again in place.
    pub(crate) const fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// `Interrupted` once the viewer wants to leave.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if self.leave.load(Ordering::Relaxed) { Err(Failure::Interrupted) } else { Ok(()) }
    }

    /// Waits, unless the viewer leaves.
    pub(crate) fn pause(&self, time: Duration) -> Result<(), Failure> {
        let begun = Instant::now();
        loop {
            self.check()?;
            let left = time.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(STEP));
        }
    }

    /// Text in a colour, if there are colours.
    pub(crate) fn paint(&self, ink: Ink, text: &str) -> String {
        if self.colour { format!("\x1b[{}m{text}\x1b[0m", ink.code()) } else { text.to_owned() }
    }

    /// The first words.
    pub(crate) fn title(&mut self, title: &str, text: &str) {
        let title = self.paint(Ink::Heading, title);
        self.print(&title);
        self.say(text);
    }

    /// Begins a scene; whoever sits at a terminal gets time to read the last one.
    pub(crate) fn scene(&mut self, title: &str) -> Result<(), Failure> {
        self.pause(if self.terminal && self.scene > 0 { READING } else { Duration::ZERO })?;
        self.scene += 1;
        let heading = self.paint(Ink::Heading, &format!("{}  {title}", self.scene));
        self.print("");
        self.print(&heading);
        Ok(())
    }

    /// Narration, wrapped.
    pub(crate) fn say(&mut self, text: &str) {
        for line in wrap(text, WIDTH - 3) {
            self.print(&format!("   {line}"));
        }
    }

    /// A line as it is, set in.
    pub(crate) fn line(&mut self, text: &str) {
        let text = format!("     {text}");
        self.print(text.trim_end());
    }

    /// A line about something that was checked.
    pub(crate) fn verdict(&mut self, passed: bool, text: &str) {
        let sign = if passed { self.paint(Ink::Good, "✓") } else { self.paint(Ink::Bad, "✗") };
        self.line(&format!("{sign} {text}"));
    }

    /// A line about something that went wrong.
    pub(crate) fn bad(&mut self, text: &str) {
        for line in wrap(text, WIDTH - 3) {
            let line = self.paint(Ink::Bad, &line);
            self.print(&format!("   {line}"));
        }
    }

    /// A command that was run on a host, and what it printed.
    pub(crate) fn command(&mut self, host: &str, words: &str, output: &str) {
        let prompt = self.paint(Ink::Quiet, &format!("{host}#"));
        let words = self.paint(Ink::Heading, words);
        self.print("");
        self.line(&format!("{prompt} {words}"));
        for line in output.lines() {
            self.line(line);
        }
        self.print("");
    }

    /// Draws lines over those of the last call; on a terminal only.
    pub(crate) fn draw(&mut self, lines: &[String]) {
        if !self.terminal {
            return;
        }
        // The cursor is hidden, and lines too long for the terminal are cut, so that each takes one row.
        let mut text = String::from("\x1b[?25l\x1b[?7l");
        if self.drawn > 0 {
            text += &format!("\x1b[{}A", self.drawn);
        }
        for line in lines {
            text += &format!("\r     {line}\x1b[K\n");
        }
        text += "\x1b[?7h";
        self.drawn = lines.len();
        self.blank = false;
        self.write(&text);
    }

    /// Leaves what was drawn where it is.
    pub(crate) fn keep_drawing(&mut self) {
        if self.terminal {
            self.write("\x1b[?25h");
        }
        self.drawn = 0;
    }

    /// Removes what was drawn.
    pub(crate) fn wipe(&mut self) {
        if self.terminal && self.drawn > 0 {
            self.write(&format!("\x1b[{}A\r\x1b[J", self.drawn));
        }
        self.keep_drawing();
    }

    /// After the last scene, or in the middle of one.
    pub(crate) fn curtain(&mut self) {
        self.keep_drawing();
        self.print("");
    }

    fn print(&mut self, line: &str) {
        if std::mem::replace(&mut self.blank, line.is_empty()) && line.is_empty() {
            return;
        }
        self.write(&format!("{line}\n"));
    }

    fn write(&mut self, text: &str) {
        let mut out = io::stdout().lock();
        // Whoever closes our output has seen enough; what is left is the clean-up.
        if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
            self.leave.store(true, Ordering::Relaxed);
        }
    }
}

/// Breaks text into lines of at most `width` letters.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is a line from the start on");
        if line.is_empty() {
            *line = word.to_owned();
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            *line += " ";
            *line += word;
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_is_too_long_and_no_word_is_lost() {
        let text = "one two three four five six seven eight nine ten";
        let lines = wrap(text, 12);
        assert!(lines.iter().all(|line| line.len() <= 12), "{lines:?}");
        assert_eq!(lines.join(" "), text);
        assert_eq!(wrap("", 5), [""]);
    }
}
