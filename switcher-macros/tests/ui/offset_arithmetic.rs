use switcher_gen::layout::{End, EventFrame, IretFrame, Offset, disp32};

const FROM_END: Offset<EventFrame, IretFrame, End> = EventFrame::iret.below_end();
// What is added is counted from where the first leads, which is a start.
const WRONG: Offset<EventFrame, u64> = FROM_END.then(IretFrame::cs);
// A distance from the end is none that a pointer to the start can take.
const BYTES: usize = FROM_END.bytes();
// No displacement is of a width that nobody names.
const DISPLACEMENT: i32 = disp32::<8, _, _, _>(FROM_END);

fn main() {
    let _ = EventFrame::iret + IretFrame::cs.below_end();
    let _ = IretFrame::cs + EventFrame::iret;
    let _ = EventFrame::vector + EventFrame::error_code;
    let _ = EventFrame::iret + 8;
}
