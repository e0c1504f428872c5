import { DatabaseUnavailable } from '../database/connection.js';

/** Statements under way at the same time: while the rows of one are worked on here, the server works on the other. */
const IN_FLIGHT = 2;
/** Most questions in one statement. A longer one would keep the first of them waiting for the last. */
const MOST = 256;

interface Asked<Question, Answer> {
  readonly question: Question;
  readonly resolve: (answer: Answer) => void;
  readonly reject: (error: unknown) => void;
}

/**
 * Answers questions that are asked at the same time by one statement: those that arrive while statements are under way
 * form the next one. Under load this saves most of the work that a statement costs besides its rows, on both sides;
 * a lone question does not wait. A question is never answered by a statement that began before it was asked.
 */
export class Coalescer<Question, Answer> {
  private waiting: Asked<Question, Answer>[] = [];
  private inFlight = 0;
  private starting = false;

  /** @param answer resolves to one answer per question, in their order; its error is the error of all of them */
  constructor(private readonly answer: (questions: readonly Question[]) => Promise<readonly Answer[]>) {}

  ask(question: Question): Promise<Answer> {
    return new Promise((resolve, reject) => {
      this.waiting.push({ question, resolve, reject });
      this.start();
    });
  }

  private start(): void {
    if (this.starting || this.inFlight >= IN_FLIGHT || this.waiting.length === 0) return;
    this.starting = true;
    const begin = (): void => {
      this.starting = false;
      void this.run(this.waiting.splice(0, MOST));
      this.start();
    };
    // Beside a running statement there is time to gather what else arrives in this turn of the event loop.
    if (this.inFlight === 0) process.nextTick(begin);
    else setImmediate(begin);
  }

  private async run(asked: readonly Asked<Question, Answer>[]): Promise<void> {
    this.inFlight += 1;
    try {
      const answers = await this.answer(asked.map(({ question }) => question));
      asked.forEach(({ resolve }, index) => {
        resolve(answers[index] as Answer);
      });
    } catch (error) {
      for (const { reject } of asked) reject(error);
      // A server that hangs would let those who wait wait for as long again.
      if (error instanceof DatabaseUnavailable)
        for (const { reject } of this.waiting.splice(0)) reject(error);
    } finally {
      this.inFlight -= 1;
      this.start();
    }
  }
}
