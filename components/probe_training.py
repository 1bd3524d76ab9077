from components.stage import train_stage


@train_stage
def probe_training():
    """Report versions and devices in the training image."""
    from distilrank import probe as stage

    stage.report_training()
