import { DatabaseUnavailable } from '../../../src/database/connection.js';
import { Coalescer } from '../../../src/event-store/coalescer.js';

interface Statement {
  readonly questions: readonly number[];
  readonly finish: (answers: readonly string[]) => void;
  readonly fail: (error: Error) => void;
}

/** Lets everything that is ready run, so that a statement that can begin has begun. */
const settle = async (): Promise<void> => {
  for (let turn = 0; turn < 3; turn += 1) await new Promise((resolve) => setImmediate(resolve));
};

let statements: Statement[];
let coalescer: Coalescer<number, string>;
beforeEach(() => {
  statements = [];
  coalescer = new Coalescer(
    (questions) =>
      new Promise((finish, fail) => {
        statements.push({ questions, finish, fail });
      }),
  );
});
const answered = (statement: Statement | undefined): void =>
  statement?.finish(statement.questions.map((question) => `answer ${question}`));

it('given an idle coalescer, when questions are asked in one go, then one statement answers all of them', async () => {
  const answers = Promise.all([1, 2, 3].map((question) => coalescer.ask(question)));
  await settle();
  expect(statements.map(({ questions }) => questions)).toEqual([[1, 2, 3]]);
  answered(statements[0]);
  expect(await answers).toEqual(['answer 1', 'answer 2', 'answer 3']);
});

it('given two statements under way, when more questions come, then they wait for one of them and share the next', async () => {
  const answers: Promise<string>[] = [];
  for (const question of [1, 2, 3, 4, 5]) {
    answers.push(coalescer.ask(question));
    await settle();
  }
  expect(statements.map(({ questions }) => questions)).toEqual([[1], [2]]);

  answered(statements[1]);
  await settle();
  // A statement that had begun before a question was asked is never its answer.
  expect(statements.map(({ questions }) => questions)).toEqual([[1], [2], [3, 4, 5]]);
  answered(statements[2]);
  answered(statements[0]);
  expect(await Promise.all(answers)).toEqual([1, 2, 3, 4, 5].map((question) => `answer ${question}`));
});

it('given a statement that fails, when others follow, then its questions alone get the error', async () => {
  const [first, second] = [coalescer.ask(1), coalescer.ask(2)];
  await settle();
  const third = coalescer.ask(3);
  await settle();
  statements[0]?.fail(new Error('gone'));
  answered(statements[1]);
  await expect(first).rejects.toThrow('gone');
  await expect(second).rejects.toThrow('gone');
  expect(await third).toBe('answer 3');
});

it('given more questions than fit into one statement, when they are asked in one go, then they are split, and each gets its own answer', async () => {
  const answers = Promise.all(Array.from({ length: 600 }, (_, question) => coalescer.ask(question)));
  for (let done = 0; done < 3; done += 1) {
    await settle();
    answered(statements[done]);
  }
  expect(statements.map(({ questions }) => questions.length)).toEqual([256, 256, 88]);
  expect((await answers)[599]).toBe('answer 599');
});

it('given statements that wait for a database that is away, when one of them gives up, then those who wait behind get the same error', async () => {
  const [first, second, third] = [1, 2, 3].map((question) =>
    coalescer.ask(question).catch((error: unknown) => error),
  );
  await settle();
  const later = coalescer.ask(4).catch((error: unknown) => error);
  await settle();
  const behind = coalescer.ask(5).catch((error: unknown) => error);
  await settle();
  const gone = new DatabaseUnavailable(new Error('timeout'));
  statements[0]?.fail(gone);
  expect(await Promise.all([first, second, third, behind])).toEqual([gone, gone, gone, gone]);
  answered(statements[1]);
  expect(await later).toBe('answer 4');
});
