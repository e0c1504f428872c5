/**
 * Does work now and then again every `ms` milliseconds, until the returned function is called. It does not keep the
 * process alive. Work that fails is told to `onError` and tried at its next turn.
 */
export function repeat(
  ms: number,
  work: () => Promise<unknown>,
  onError: (error: unknown) => void,
): () => void {
  const turn = (): void => {
    work().catch(onError);
  };
  turn();
  const timer = setInterval(turn, ms);
  timer.unref();
  return () => {
    clearInterval(timer);
  };
}
