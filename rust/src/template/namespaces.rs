//! `namespace()`, whose values templates can make hold themselves: they are
//! taken apart after rendering, because counted references never would be.

use std::cell::RefCell;

use minijinja::value::ValueOrKwargs;
use minijinja::{functions, Environment, Error, Value};

thread_local! {
    /// Rendering has a thread of its own.
    static MADE: RefCell<Vec<Value>> = const { RefCell::new(Vec::new()) };
}

pub fn namespace(members: Option<ValueOrKwargs>) -> Result<Value, Error> {
    let made = functions::namespace(members)?;
    MADE.with(|all| all.borrow_mut().push(made.clone()));
    Ok(made)
}

/// Takes apart what this thread has made.
pub fn clear() {
    let environment = Environment::new();
    for made in MADE.with(RefCell::take) {
        let Ok(names) = made.try_iter() else { continue };
        for name in names {
            let holds = made.get_item(&name).is_ok_and(|value| value.as_object().is_some());
            if holds {
                // Only the template language can set them. Names that it can't
                // name can't have been set to anything newer, either.
                let _ = environment.render_str(
                    &format!("{{% set made.{name} = none %}}"),
                    Value::from_pairs([("made", made.clone())]),
                );
            }
        }
    }
}
