import { endOfTurn } from '../../../src/event-store/end-of-turn.js';
import { atLowPriority } from '../../../src/generation/low-priority.js';

describe('what yields to more urgent work', () => {
  it('given much of it, when something urgent comes, then that waits for a few at most, and all is done in its order', async () => {
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

  it('given more than can be done, when it goes on coming, then what waits stays bounded', async () => {
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

  it('given something that is done, when it asks for more, then that comes behind what waits already', async () => {
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
