import { endOfTurn } from '../../../src/event-store/end-of-turn.js';
import { atLowPriority } from '../../../src/generation/low-priority.js';

describe('low-priority tasks', () => {
  it('given many tasks, when urgent work comes, then it waits for a few tasks at most, and all tasks run in their order', async () => {
    const done: number[] = [];
    const whole = new Promise<void>((resolve) => {
      for (let n = 0; n < 20; n += 1) atLowPriority(() => done.push(n));
      atLowPriority(resolve);
    });
    expect(done).toEqual([]);
    await endOfTurn();
    expect(done).toEqual([0, 1, 2, 3]);
    await whole;
    expect(done).toEqual(Array.from({ length: 20 }, (_, n) => n));
  });

  it('given tasks that arrive faster than a few per turn, when they go on arriving, then the number of waiting tasks stays bounded', async () => {
    let waiting = 0;
    let most = 0;
    for (let n = 0; n < 200; n += 1) {
      for (let one = 0; one < 50; one += 1) {
        waiting += 1;
        atLowPriority(() => (waiting -= 1));
      }
      most = Math.max(most, waiting);
      await endOfTurn();
    }
    expect(most).toBeLessThan(50 * 20);
    while (waiting > 0) await endOfTurn();
  });

  it('given a task that adds another task, when it runs, then the new task runs after those that wait already', async () => {
    const done: string[] = [];
    await new Promise<void>((resolve) => {
      atLowPriority(() => {
        done.push('first');
        atLowPriority(() => {
          done.push('last');
          resolve();
        });
      });
      for (let n = 0; n < 6; n += 1) atLowPriority(() => done.push('between'));
    });
    expect(done).toEqual(['first', ...Array.from({ length: 6 }, () => 'between'), 'last']);
  });
});
