//! `strftime_now`.

use minijinja::{Error, Value};

use super::python;

/// `mlxlm_rust_time`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LocalTime {
    pub year: i32,
    pub month: i32,
    pub day: i32,
    pub hour: i32,
    pub minute: i32,
    pub second: i32,
    pub microsecond: i32,
}

const MONTHS: [&str; 12] = [
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
];
const DAYS: [&str; 7] = [
    "Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday",
];

impl LocalTime {
    pub fn function(self) -> Value {
        Value::from_function(move |format: &str| -> Result<String, Error> {
            self.format(format)
                .ok_or_else(|| python::error(format!("strftime_now can't write {format:?}")))
        })
    }

    fn is_leap(year: i32) -> bool {
        year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
    }

    /// From 1.
    fn day_of_year(self) -> i32 {
        const BEFORE: [i32; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
        let leap = i32::from(self.month > 2 && Self::is_leap(self.year));
        BEFORE[self.month as usize - 1] + self.day + leap
    }

    /// From 0, Sunday.
    fn weekday(self) -> i32 {
        let years = self.year - 1;
        let days = 365 * years + years.div_euclid(4) - years.div_euclid(100)
            + years.div_euclid(400)
            + self.day_of_year();
        days.rem_euclid(7)
    }

    /// Week and year by ISO 8601.
    fn iso_week(self) -> (i32, i32) {
        let weekday = (self.weekday() + 6) % 7;
        let week = (self.day_of_year() - weekday + 9) / 7;
        let weeks_in = |year: i32| {
            let first = LocalTime { year, month: 1, day: 1, ..self }.weekday();
            if first == 4 || (first == 3 && Self::is_leap(year)) { 53 } else { 52 }
        };
        if week < 1 {
            (weeks_in(self.year - 1), self.year - 1)
        } else if week > weeks_in(self.year) {
            (1, self.year + 1)
        } else {
            (week, self.year)
        }
    }

    /// None for directives that C's strftime doesn't have in common with
    /// Python's.
    fn format(self, format: &str) -> Option<String> {
        if !(1..=12).contains(&self.month) || !(1..=31).contains(&self.day) {
            return None;
        }
        let mut out = String::new();
        let mut rest = format.chars();
        while let Some(character) = rest.next() {
            if character != '%' {
                out.push(character);
                continue;
            }
            let mut directive = rest.next()?;
            let mut pad = None;
            if matches!(directive, '-' | '_' | '0') {
                pad = Some(directive);
                directive = rest.next()?;
            }
            out.push_str(&self.directive(directive, pad)?);
        }
        Some(out)
    }

    fn directive(self, directive: char, pad: Option<char>) -> Option<String> {
        let number = |value: i32, width: usize, default: char| match pad.unwrap_or(default) {
            '-' => value.to_string(),
            '_' => format!("{value:>width$}"),
            _ => format!("{value:0>width$}"),
        };
        let month = MONTHS[self.month as usize - 1];
        let day = DAYS[self.weekday() as usize];
        let hour12 = (self.hour + 11) % 12 + 1;
        let half = if self.hour < 12 { "AM" } else { "PM" };
        let (iso_week, iso_year) = self.iso_week();
        let all = |format: &str| self.format(format);
        Some(match directive {
            'Y' => number(self.year, 1, '0'),
            'C' => number(self.year / 100, 2, '0'),
            'y' => number(self.year % 100, 2, '0'),
            'G' => number(iso_year, 1, '0'),
            'm' => number(self.month, 2, '0'),
            'd' => number(self.day, 2, '0'),
            'e' => number(self.day, 2, '_'),
            'H' => number(self.hour, 2, '0'),
            'k' => number(self.hour, 2, '_'),
            'I' => number(hour12, 2, '0'),
            'l' => number(hour12, 2, '_'),
            'M' => number(self.minute, 2, '0'),
            'S' => number(self.second, 2, '0'),
            'f' => format!("{:06}", self.microsecond),
            'j' => number(self.day_of_year(), 3, '0'),
            'u' => number((self.weekday() + 6) % 7 + 1, 1, '0'),
            'w' => number(self.weekday(), 1, '0'),
            'U' => number((self.day_of_year() + 6 - self.weekday()) / 7, 2, '0'),
            'W' => number((self.day_of_year() + 6 - (self.weekday() + 6) % 7) / 7, 2, '0'),
            'V' => number(iso_week, 2, '0'),
            'B' => month.to_owned(),
            'b' | 'h' => month[..3].to_owned(),
            'A' => day.to_owned(),
            'a' => day[..3].to_owned(),
            'p' => half.to_owned(),
            'P' => half.to_lowercase(),
            'F' => all("%Y-%m-%d")?,
            'D' | 'x' => all("%m/%d/%y")?,
            'T' | 'X' => all("%H:%M:%S")?,
            'R' => all("%H:%M")?,
            'r' => all("%I:%M:%S %p")?,
            'c' => all("%a %b %e %H:%M:%S %Y")?,
            'n' => "\n".to_owned(),
            't' => "\t".to_owned(),
            'Z' | 'z' => String::new(),
            '%' => "%".to_owned(),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        let time = LocalTime {
            year: 2024,
            month: 12,
            day: 30,
            hour: 15,
            minute: 4,
            second: 5,
            microsecond: 42,
        };
        let format = |text| time.format(text);
        assert_eq!(
            format("%d %B %Y, %A %a %b %-d|%e|%j|%I %p|%y|%f|%%").unwrap(),
            "30 December 2024, Monday Mon Dec 30|30|365|03 PM|24|000042|%"
        );
        assert_eq!(format("%U %W %V %G %u %w").unwrap(), "52 53 01 2025 1 1");
        assert_eq!(format("%c").unwrap(), "Mon Dec 30 15:04:05 2024");
        assert_eq!(format("%Q"), None);
        assert_eq!(format("%"), None);
    }
}
