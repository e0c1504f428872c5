/** Holds a promise to an error that would be answered with this code. */
export const expectProblemCode = (promise: Promise<unknown>, code: string): Promise<void> =>
  expect(promise).rejects.toMatchObject({ code });
