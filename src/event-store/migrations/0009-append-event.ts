import { type MigrationInterface } from 'typeorm';

/** The functions that it made are made by 0010 now; it stays for the databases in which it was applied. */
export class AppendEvent1770000000009 implements MigrationInterface {
  readonly name = 'AppendEvent1770000000009';

  up(): Promise<void> {
    return Promise.resolve();
  }

  down(): Promise<void> {
    return Promise.reject(new Error('a log is never taken back'));
  }
}
