//! Step 6. Proof: the bytes do what the specification says, for every state. With one instruction
//! missing they do not, and there is a state that shows it.

use std::error::Error;

use switcher_gen::{Image, Variant};
use switcher_prove::mutate;
use switcher_prove::mutate::Operator;
use switcher_prove::{Prover, Target, Verdict};

fn main() -> Result<(), Box<dyn Error>> {
    let right = Target::image(&Image::new(&Variant::REFERENCE)?);
    let prover = Prover::default();
    let Verdict::Proved(reports) = prover.prove(&right) else {
        return Err("the reference is not proved".into());
    };
    for report in &reports {
        let (paths, goals) = (report.paths, report.goals);
        println!(
            "{} ({:?} guest): {paths} paths, {goals} goals",
            report.theorem, report.guest_memory
        );
    }

    // The test of RF and TF before SYSRETQ is followed by a jump. This is the code without that
    // jump.
    let mutants = mutate::mutants(&right);
    let jump = mutants
        .iter()
        .skip_while(|mutant| !mutant.original.starts_with("test r11"))
        .find(|mutant| mutant.operator == Operator::Delete && mutant.original.starts_with("jne"));
    let wrong = jump.and_then(mutate::Mutant::target).ok_or("there is such a jump")?;
    let Verdict::Refuted(found) = prover.prove(&wrong) else {
        return Err("a switcher that returns with TF by SYSRETQ was not refuted".into());
    };
    println!("\n{found}");
    println!("The same state in the right switcher: broken = {}", found.replay(&right));
    Ok(())
}
