from components.stage import train_stage


@train_stage
def probe_training():
    """Report what the training image has."""
    from distilrank import probe as stage

    stage.report_training()
