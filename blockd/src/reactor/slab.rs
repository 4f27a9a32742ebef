//! Numbers for things that come and go.

/// Values by small numbers. Bounded by what clients' queues hold.
pub struct Slab<T> {
    slots: Vec<Option<T>>,
    free: Vec<usize>,
    pub used: usize,
}

impl<T> Default for Slab<T> {
    fn default() -> Slab<T> {
        Slab { slots: Vec::new(), free: Vec::new(), used: 0 }
    }
}

impl<T> Slab<T> {
    pub fn insert(&mut self, value: T) -> usize {
        self.used += 1;
        if let Some(id) = self.free.pop() {
            self.slots[id] = Some(value);
            return id;
        }
        self.slots.push(Some(value));
        self.slots.len() - 1
    }

    pub fn get(&mut self, id: usize) -> &mut T {
        self.slots[id].as_mut().expect("an id that insert gave and remove did not take")
    }

    pub fn remove(&mut self, id: usize) -> T {
        self.used -= 1;
        self.free.push(id);
        self.slots[id].take().expect("an id that insert gave and remove did not take")
    }
}
